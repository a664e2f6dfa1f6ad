"""Causes keep their names: what the machine refuses is no fault of a file."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bitexp.common.errors import UserError, is_of_the_machine
from bitexp.common.exit import guarded
from bitexp.deploy.load import load_run
from bitexp.deploy.packed_file import read_packed
from bitexp.track import checkpoint_files
from bitexp.track.checkpoint_files import LAST, PREVIOUS, damage, latest_checkpoint

CAUSES = [
    PermissionError(errno.EACCES, "Permission denied", "last.ckpt"),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.EMFILE, "Too many open files"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
]
OF_FILES = [OSError("seek"), OSError(errno.EINVAL, "Invalid argument"), ValueError("x"), RuntimeError("zip")]


@pytest.mark.parametrize("cause", CAUSES)
def test_the_machine_is_told_from_a_file(cause: Exception) -> None:
    assert is_of_the_machine(cause)


@pytest.mark.parametrize("cause", OF_FILES)
def test_a_file_is_told_from_the_machine(cause: Exception) -> None:
    assert not is_of_the_machine(cause)


def raising(cause: Exception) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise cause

    return refuse


@pytest.mark.parametrize("cause", CAUSES)
def test_a_good_checkpoint_that_cannot_be_read_stays_where_it_is(
    cause: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (LAST, PREVIOUS):
        torch.save({"callbacks": {"Checkpoints": {}}}, tmp_path / name)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files.torch, "load", raising(cause))
        with pytest.raises(type(cause)):
            latest_checkpoint(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAST, PREVIOUS]
    assert damage(tmp_path / LAST) is None


@pytest.mark.parametrize("cause", CAUSES)
def test_what_keeps_a_model_from_loading_keeps_its_name(
    cause: Exception, train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = train().folder
    for weights, place in (
        ("packed", "bitexp.deploy.packed_file.safetensors.safe_open"),
        ("packed", "bitexp.deploy.description.Description.build"),
        ("last", "bitexp.deploy.description.Description.build"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, raising(cause))
            with pytest.raises(type(cause)):
                load_run(folder, weights)


def test_a_folder_is_no_packed_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="damaged or no safetensors file"):
        read_packed(tmp_path)


def test_a_lack_of_permission_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(raising(CAUSES[0])) == 2
    assert capsys.readouterr().err == "bitexp: last.ckpt cannot be used: there is no permission for it\n"
