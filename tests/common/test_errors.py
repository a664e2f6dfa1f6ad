"""Causes keep their names: what the machine refuses is no fault of a file."""

from __future__ import annotations

import ast
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bitexp.common.errors import UserError, first_line, is_of_the_machine
from bitexp.common.exit import guarded
from bitexp.data.images.cifar import read_batch
from bitexp.data.images.mnist import read_idx
from bitexp.data.text.tokenizers import load_tokenizer
from bitexp.deploy.load import load_run
from bitexp.deploy.packed_file import read_packed
from bitexp.deploy.sources.tensor_files import read_state_dict
from bitexp.track import checkpoint_files
from bitexp.track.checkpoint_files import LAST, PREVIOUS, damage, latest_checkpoint
from tests.support.source import trees

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


READERS: list[tuple[str, Callable[[Path], Any]]] = [
    ("pathlib.Path.open", read_batch),
    ("pathlib.Path.read_bytes", read_idx),
    ("torch.load", read_state_dict),
    ("bitexp.data.text.tokenizers.library", lambda path: load_tokenizer("{}", path)),
]


@pytest.mark.parametrize(("place", "read"), READERS, ids=[place for place, _ in READERS])
@pytest.mark.parametrize("cause", CAUSES[:4])
def test_what_keeps_a_file_from_being_read_keeps_its_name(
    cause: Exception, place: str, read: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(place, raising(cause))
        with pytest.raises(type(cause)):
            read(path)
    with pytest.raises(UserError):  # it is none of that kind
        read(path)


def test_whoever_tells_the_user_of_any_error_lets_those_of_the_machine_through() -> None:
    """But where a network or a server is asked, and where they have a handler of their own (decode.py)."""
    silent = set()
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Name):
                words = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
                told = any(isinstance(part, ast.Raise) and part.exc for part in ast.walk(node))
                if (
                    node.type.id == "Exception"
                    and told
                    and not words & {"is_of_the_machine", "MemoryError", "describe_crash"}
                ):
                    silent.add(path.name)
    assert silent == {"torchvision.py", "dashboard.py", "decode.py"}


def test_an_error_without_words_is_told_by_its_name() -> None:
    assert first_line(EOFError()) == "EOFError"
    assert first_line(ValueError(" one\ntwo")) == "one"


def test_a_folder_is_no_packed_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="damaged or no safetensors file"):
        read_packed(tmp_path)


def test_a_lack_of_permission_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(raising(CAUSES[0])) == 2
    assert capsys.readouterr().err == "bitexp: last.ckpt cannot be used: there is no permission for it\n"
