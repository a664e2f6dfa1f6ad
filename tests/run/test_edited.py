"""Editing a method is what everyone does here: edited code has runs of its own, and no mean mixes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitexp.common.console import Report
from bitexp.quant import WEIGHTS
from bitexp.report.compare import compare
from bitexp.report.runs import read_runs
from bitexp.report.tables import precision_table
from bitexp.report.wording import caption
from bitexp.run.road import Outcome
from tests.support.extensions import QUARTER, Load, extensions
from tests.support.training import Train

WORDS = ("quantizer.weights=quarter", "quantizer.name=quarter")


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    with extensions(tmp_path / "mine") as load:
        yield load


@pytest.fixture
def run(load: Load, train: Train) -> Any:
    """Trains with the quantizer of the README, edited, as in a process of its own."""

    def of(old: str, new: str, seed: int, *words: str, report: Report | None = None) -> Outcome:
        module = load("quarter", {"quarter": QUARTER.replace(old, new)})
        with WEIGHTS.temporarily("quarter", module.Quarter):
            return train(*WORDS, f"seed={seed}", *words, report=report)

    return of


def test_an_edited_quantizer_is_trained_again_and_never_averaged_with_the_old(
    run: Any, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run("", "", 0)
    assert not run("/ 2", "/ 2  # half of it", 0).trained
    edited = [run("/ 2", "/ 8", seed, report=Report()) for seed in (1, 0)]
    assert [outcome.trained for outcome in edited] == [True, True]
    assert "the id counts code that is edited or not bitexp's own: quarter.py" in capsys.readouterr().out
    assert len({first.folder, *(outcome.folder for outcome in edited)}) == 3
    assert not run("", "", 0).trained, "the old one is found again where the edit is taken back"

    (comparison,) = compare(read_runs([outputs])[0])
    assert sorted(row.cell.score.seeds for row in comparison.rows) == [1, 2]
    (attempt,) = json.loads((edited[0].folder / "provenance.json").read_text())["attempts"]
    assert list(attempt["files"]) == ["quarter.py"]
    newest = attempt["code"]["quantizer"]
    assert f"the newest is quarter (code {newest})." in caption(comparison)
    assert "different versions" not in caption(comparison)
    codes = [row["quantizer.code"] for row in precision_table(comparison).values()]
    assert newest in codes
    assert len(set(codes)) == 2


def test_an_unfinished_run_of_other_code_stays_and_is_told(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run("", "", 0)
    (first.folder / "result.json").unlink()
    second = run("/ 2", "/ 8", 0, report=Report())
    assert second.folder != first.folder
    said = " ".join(capsys.readouterr().out.split())
    assert "is unfinished and of other code: it stays as it is" in said
    assert "resumes" not in said


def test_provenance_says_under_what_a_run_was_made(train: Train) -> None:
    outcome = train()
    (attempt,) = json.loads((outcome.folder / "provenance.json").read_text())["attempts"]
    assert (attempt["kernel"], attempt["device"]) == (outcome.result["kernel"], attempt["processor"])
    assert (attempt["code"], attempt["files"], attempt["rerun"]) == ({}, {}, False)
    assert set(attempt["versions"]) >= {"torch", "numba", "triton"}
    assert attempt["uncommitted"]
