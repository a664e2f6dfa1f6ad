"""Finished cells of a grid are passed without composing or building anything, if nothing has changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bitexp.run.road
from bitexp.data.images.digits import Digits
from bitexp.sweep import finished_cells
from bitexp.sweep.finished_cells import FinishedCells
from tests.support.configs import SMALL

WORDS = (*SMALL, "seed=0,1", "quantizer=full")
CELL = [*SMALL, "seed=0", "quantizer=full"]


def no_road(*_: Any, **__: Any) -> None:
    raise AssertionError("a finished cell needs no road")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of all tests here, one after the other: what words mean depends on where they are."""
    return tmp_path_factory.mktemp("cells") / "outputs"


@pytest.fixture(scope="module")
def grid(place: Path, command: Any) -> Path:
    """A copy of what a grid of two leaves, which is made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITEXP_OUTPUTS", str(place))
        ended = command("-m", *WORDS)
    assert ended.code == 0, ended.err
    return place.rename(place.with_name("grid"))


@pytest.fixture(autouse=True)
def outputs(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("BITEXP_OUTPUTS", str(place))
    yield place
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def known(grid: Path, outputs: Path) -> FinishedCells:
    """The cells of a grid of two that has been made."""
    shutil.copytree(grid, outputs)
    return FinishedCells([], ())


@pytest.fixture
def as_before(monkeypatch: pytest.MonkeyPatch, outputs: Path) -> None:
    """What the words mean is what they meant."""
    monkeypatch.setattr(
        finished_cells, "context", lambda *_: json.loads((outputs / ".cells.json").read_text())["context"]
    )


def test_the_same_grid_again_takes_no_road(known: Any, command: Any, outputs: Path) -> None:
    again = command("-m", *WORDS, first=lambda: setattr(bitexp.run.road, "run", no_road))
    assert again.code == 0, again.err
    assert "2 of 2 cells were finished before\n" in again.out
    assert "2 jobs: 0 trained, 2 finished before, 0 not finished" in again.out
    first, second = sorted(outputs.glob("*/sweeps/*"))
    before, after = (json.loads((sweep / "jobs" / "1.json").read_text()) for sweep in (first, second))
    assert after == {**before, "trained": False}
    more = command("-m", *SMALL, "seed=0,1,2", "quantizer=full")
    assert more.code == 0, more.err
    assert "2 of 3 cells were finished before\n" in more.out
    assert "3 jobs: 1 trained, 2 finished before, 0 not finished" in more.out


def test_a_cell_counts_while_its_result_and_its_data_are_there(
    known: Any, as_before: None, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = FinishedCells([], ()).record(CELL)
    assert record is not None
    assert record["overrides"] == CELL
    assert FinishedCells([], ()).record([*CELL, "seed=9"]) is None
    with monkeypatch.context() as patch:
        patch.setattr(Digits, "fingerprint", lambda self: "other data")
        assert FinishedCells([], ()).record(CELL) is None
    packed = Path(record["run"]) / "packed.safetensors"
    packed.rename(packed.with_suffix(".away"))
    assert FinishedCells([], ()).record(CELL) is None  # the road makes it again
    packed.with_suffix(".away").rename(packed)
    assert FinishedCells([], ()).record(CELL) == record
    result = Path(record["run"]) / "result.json"
    result.write_text(json.dumps({**json.loads(result.read_text()), "status": "failed"}))
    assert FinishedCells([], ()).record(CELL) is None
    result.unlink()
    assert FinishedCells([], ()).record(CELL) is None


@pytest.mark.parametrize("word", ["rerun=true", "name=mine"])
def test_what_words_do_not_say_is_not_kept(
    word: str, command: Any, outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is always made anew, and one whose config names a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").touch()
    assert command("-m", *CELL, word).code == 0
    assert json.loads((outputs / ".cells.json").read_text())["cells"] == {}


def test_a_place_that_cannot_be_used_ends_no_sweep(
    known: FinishedCells, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = json.loads(known.file.read_text())["context"]
    monkeypatch.setattr(finished_cells, "context", lambda *_: kept)
    known.context = kept
    record = known.record(CELL)
    known.file.unlink()
    known.file.mkdir()  # for root, whom no permission keeps from writing
    unusable = FinishedCells([], ())
    assert unusable.record(CELL) is None
    assert record is not None
    unusable.begin(tmp_path, [0])
    unusable.collect()
    assert known.file.is_dir()


def test_a_teacher_that_the_words_describe_is_no_file(train: Any) -> None:
    """One that they name may change, and its student is looked at anew."""
    made = train("+recipe=self_distill")
    assert finished_cells.cell_of(made.folder) is not None
    assert (made.folder / "packed.safetensors").exists()
    named = train(f"distill.teacher={made.folder / 'packed.safetensors'}")
    assert finished_cells.cell_of(named.folder) is None


def test_the_next_command_finds_what_has_ended_after_a_sweep_was_left(
    known: FinishedCells, as_before: None, outputs: Path, tmp_path: Path
) -> None:
    """As in a cluster's queue, or with its launcher killed; of a job that has not ended nothing is known."""
    kept = json.loads(known.file.read_text())
    assert kept["begun"] == {}
    (sweep,) = outputs.glob("*/sweeps/*")
    jobs = [path.read_text() for path in sorted((sweep / "jobs").iterdir())]
    known.file.write_text(json.dumps({**kept, "cells": {}}))
    left = FinishedCells([], ())
    (tmp_path / "left" / "jobs").mkdir(parents=True)
    (tmp_path / "left" / "jobs" / "0.json").write_text("of another command in this folder")
    left.begin(tmp_path / "left", range(3))
    left.collect()
    assert FinishedCells([], ()).record(CELL) is None
    for number, job in zip((0, 2), jobs, strict=True):
        (tmp_path / "left" / "jobs" / f"{number}.json").write_text(job)
    later = FinishedCells([], ())
    later.collect()
    assert later.cells == kept["cells"]
    assert later.record(CELL) is not None
    assert list(json.loads(known.file.read_text())["begun"].values()) == [[1]]
    shutil.rmtree(tmp_path / "left")
    later.collect()
    assert json.loads(known.file.read_text())["begun"] == {}
