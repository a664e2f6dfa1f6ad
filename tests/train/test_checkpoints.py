"""Checkpoints: when they are saved, which one is taken, what counts as damage."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from bitexp.common.errors import UserError
from bitexp.track.checkpoint_files import (
    BEST,
    DAMAGED,
    LAST,
    PREVIOUS,
    damage,
    latest_checkpoint,
    load_checkpoint,
    surplus,
)
from bitexp.train import checkpoints as ours


def save(path: Path, **content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    torch.save({"callbacks": {"Checkpoints": {}}, "w": torch.arange(1000.0), **content}, path)


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def test_no_folder_and_no_file_is_a_fresh_start(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nowhere") == (None, [])
    tmp_path.joinpath(DAMAGED).touch()
    assert latest_checkpoint(tmp_path) == (None, [])


def test_the_last_is_taken(tmp_path: Path) -> None:
    save(tmp_path / PREVIOUS)
    assert latest_checkpoint(tmp_path) == (tmp_path / PREVIOUS, [])
    save(tmp_path / LAST)
    assert latest_checkpoint(tmp_path) == (tmp_path / LAST, [])
    spoil(tmp_path / PREVIOUS)
    assert latest_checkpoint(tmp_path) == (tmp_path / LAST, [])


def test_a_damaged_one_is_put_aside_for_the_one_before(tmp_path: Path) -> None:
    save(tmp_path / LAST)
    save(tmp_path / PREVIOUS)
    spoil(tmp_path / LAST)
    path, (remark,) = latest_checkpoint(tmp_path)
    assert path == tmp_path / PREVIOUS
    assert remark.startswith("last.ckpt is damaged: it cannot be read (")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [DAMAGED, PREVIOUS]


def test_the_best_is_taken_where_no_other_can_be(tmp_path: Path) -> None:
    save(tmp_path / BEST)
    assert latest_checkpoint(tmp_path) == (tmp_path / BEST, [])
    for name in (LAST, PREVIOUS):
        save(tmp_path / name)
        spoil(tmp_path / name)
    path, remarks = latest_checkpoint(tmp_path)
    assert path == tmp_path / BEST
    assert len(remarks) == 2
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [BEST, DAMAGED, PREVIOUS]


@pytest.mark.parametrize(
    ("keep", "names", "kept"),
    [
        ("all", [LAST, PREVIOUS, BEST, DAMAGED], [LAST, PREVIOUS, BEST, DAMAGED]),
        ("best", [LAST, PREVIOUS, BEST, DAMAGED], [BEST]),
        ("best", [LAST, PREVIOUS], [LAST]),
        ("none", [LAST, PREVIOUS, BEST, DAMAGED], []),
        ("none", [], []),
    ],
)
def test_what_is_kept_of_a_finished_run(keep: str, names: list[str], kept: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "mine.txt").touch()
    for path in surplus(tmp_path, keep):
        path.unlink()
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "mine.txt"}


@pytest.mark.parametrize("names", [[LAST], [PREVIOUS], [LAST, PREVIOUS]])
def test_nothing_but_damage_is_an_error(names: list[str], tmp_path: Path) -> None:
    for name in names:
        save(tmp_path / name)
        spoil(tmp_path / name)
    with pytest.raises(UserError, match=r".* has no usable checkpoint") as told:
        latest_checkpoint(tmp_path)
    assert all(f"{name} is damaged" in str(told.value) for name in names)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(names)


def test_kinds_of_damage(tmp_path: Path) -> None:
    path = tmp_path / LAST
    assert damage(path) == "it is missing"
    save(path)
    assert damage(path) is None
    with zipfile.ZipFile(path) as archive:
        record = archive.getinfo("last/data/0")
    content = bytearray(path.read_bytes())
    content[record.header_offset + 500] ^= 1
    path.write_bytes(content)
    assert damage(path) == "its record last/data/0 is corrupt"
    path.write_bytes(b"")
    assert str(damage(path)).startswith("it cannot be read (")
    torch.save(torch.ones(3), path)
    assert damage(path) == "it is not a checkpoint of bitexp"
    torch.save({"callbacks": {}}, path)
    assert damage(path) == "it is not a checkpoint of bitexp"


def test_a_checkpoint_holds_what_may_be_loaded_and_nothing_else(tmp_path: Path) -> None:
    save(tmp_path / LAST, hook=print)
    assert "it cannot be read (Weights only load failed" in str(damage(tmp_path / LAST))


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps after which checkpoints were saved."""
    steps: list[int] = []
    save = ours.Checkpoints._save

    def note_and_save(self: Any, trainer: Any) -> None:
        steps.append(trainer.global_step)
        save(self, trainer)

    monkeypatch.setattr(ours.Checkpoints, "_save", note_and_save)
    return steps


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], [4, 8]),
        (["trainer.epochs=5", "trainer.validate_every=2"], [8, 16, 20]),
        (["trainer.epochs=3", "trainer.validate_every=2", "callbacks.checkpoint.every_steps=4"], [4, 8, 12]),
        (["callbacks.checkpoint.every_steps=3"], [3, 4, 6, 8]),
        (["callbacks.checkpoint.every_steps=1", "trainer.accumulate=2"], [1, 2, 3, 4]),
        (["callbacks.checkpoint.every_minutes=1e-9"], list(range(1, 9))),
        (["trainer.max_steps=6"], [4, 6]),
        (["trainer.max_steps=6", "callbacks.checkpoint.every_steps=3"], [3, 4, 6]),
    ],
)
def test_when_checkpoints_are_saved(
    words: list[str], expected: list[int], train: Any, saved: list[int]
) -> None:
    assert train(*words).status == "finished"
    assert saved == expected


def test_what_lies_there_at_the_end(train: Any) -> None:
    outcome = train("callbacks.checkpoint.monitor=val/loss")
    names = {entry.name for entry in (outcome.folder / "checkpoints").iterdir()}
    assert names == {LAST, PREVIOUS, BEST}
    steps = {name: load_checkpoint(outcome.folder / "checkpoints" / name)["global_step"] for name in names}
    assert (steps[PREVIOUS], steps[LAST]) == (4, 8)
