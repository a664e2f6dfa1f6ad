"""A full disk fails the run and harms no checkpoint."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from bitexp.track.checkpoint_files import damage
from tests.support.configs import SMALL
from tests.support.faults import EVERY_STEP, Undisturbed, arrange, assert_same
from tests.support.processes import Command
from tests.support.training import Train


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no right to mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> None:
    """Leaves no byte on a file system."""
    with (place / "filler").open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass


@pytest.mark.parametrize(("hook", "count"), [("on_train_batch_start", 3), ("on_validation_start", 2)])
def test_a_full_disk_fails_the_run_and_harms_no_checkpoint(
    hook: str,
    count: int,
    small_disk: Path,
    command: Command,
    train: Train,
    undisturbed: Undisturbed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BITEXP_OUTPUTS", str(small_disk / "outputs"))
    ended = command(*SMALL, EVERY_STEP, first=partial(arrange, hook, count, partial(fill, small_disk)))
    assert ended.code == 1
    assert "Failed: the disk is full (OSError: [Errno 28] No space left on device" in ended.out
    assert "Earlier checkpoints are intact" in ended.out
    assert "Traceback" not in ended.out + ended.err
    assert "Logging error" not in ended.err
    (checkpoint,) = small_disk.glob("outputs/*/*/checkpoints/last.ckpt")
    assert damage(checkpoint) is None
    ended = command(*SMALL)
    assert ended.code == 1
    assert "the disk is full" in ended.out + ended.err
    assert "Traceback" not in ended.out + ended.err
    assert damage(checkpoint) is None
    (small_disk / "filler").unlink()
    assert_same(train().folder, undisturbed("plain"))


def test_a_file_that_may_not_grow_fails_the_run_likewise(
    command: Command, train: Train, outputs: Path, undisturbed: Undisturbed
) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))

    ended = command(*SMALL, EVERY_STEP, first=partial(arrange, "on_train_batch_start", 3, limit))
    assert ended.code == 1
    assert "Failed: the disk is full (OSError: [Errno 27] File too large" in ended.out
    (checkpoint,) = outputs.glob("*/*/checkpoints/last.ckpt")
    assert damage(checkpoint) is None
    assert not list(checkpoint.parent.glob(".*"))
    assert_same(train().folder, undisturbed("plain"))
