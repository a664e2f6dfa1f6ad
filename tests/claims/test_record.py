"""The table of runs: written, read, and refused where it is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitexp.claims.record import Known, joined, known_run, read_record, setting_of, write_record
from bitexp.common.errors import UserError
from tests.support.run_folders import WriteRun


def test_it_holds_what_runs_are_and_measured(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run("binary", 3, 0.75, validated=0.8, typed=("logger=csv", "seed=3"))
    run = known_run(folder)
    assert run is not None
    file = tmp_path / "results" / "runs.csv"
    write_record(file, [run])
    again = read_record(file)
    assert again == {run.id: run}
    assert (run.score, run.sign, run.metrics["val/accuracy"]) == (0.75, 1, 0.8)
    assert (run.facts["setting"], run.facts["seed"]) == ("quantizer=binary", "3")


def test_settings_are_read_as_they_were(write_run: WriteRun, tmp_path: Path) -> None:
    """Whether a spreadsheet would take them for a formula, or they begin with a quote of their own."""
    file = tmp_path / "runs.csv"
    for setting in ("+experiment=lm", "'model.hidden=[8]' seed=1", "-1"):
        run = known_run(write_run("binary", 3, 0.75))
        assert run is not None
        write_record(file, [Known(run.id, {**run.facts, "setting": setting}, run.metrics)])
        assert read_record(file)[run.id].facts["setting"] == setting


def test_a_run_that_diverged_has_a_line_without_metrics(write_run: WriteRun, tmp_path: Path) -> None:
    ending = {"status": "failed", "kind": "diverged", "headline": None, "better": None}
    run = known_run(write_run("binary", 3, result=ending))
    assert run is not None
    file = tmp_path / "runs.csv"
    write_record(file, [run])
    assert read_record(file) == {run.id: run}
    assert run.diverged
    assert not run.metrics


def test_a_run_that_finished_on_one_machine_is_finished(write_run: WriteRun) -> None:
    """Whichever table comes first: processors round differently, and so may differ in where NaN begins."""
    finished = known_run(write_run("binary", 3, 0.75))
    assert finished is not None
    diverged = Known(finished.id, {**finished.facts, "status": "diverged"})
    tables = {finished.id: finished}, {finished.id: diverged}
    assert joined(*tables) == joined(*reversed(tables)) == {finished.id: finished}
    again = Known(finished.id, {**finished.facts, "machine": "another"}, finished.metrics)
    assert joined(tables[0], {finished.id: again}) == {finished.id: again}


def test_a_table_from_before_they_had_lines_is_read(write_run: WriteRun, tmp_path: Path) -> None:
    run = known_run(write_run("binary", 3, 0.75))
    assert run is not None
    file = tmp_path / "runs.csv"
    write_record(file, [run])
    file.write_text(file.read_text().replace(",status,", ",").replace(",finished,", ","))
    assert read_record(file) == {run.id: run}


def test_a_run_that_is_not_finished_is_none(write_run: WriteRun, tmp_path: Path) -> None:
    assert known_run(write_run(result={"status": "failed"})) is None
    assert known_run(tmp_path / "nowhere") is None


def test_settings_leave_out_what_changes_nothing() -> None:
    words = ["+experiment=a", "callbacks.ema_decay=0.9"]
    unimportant = ["seed=1", "logger=csv", "callbacks.checkpoint.keep=none", "~hydra.callbacks.summary"]
    assert setting_of([*words, *unimportant]) == words


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("headline,", "headlin,"), "no table of runs: the columns headline are missing"),
        (("0.75", "much"), "line 2 is damaged"),
        (("finished", "fnished"), "line 2 is damaged"),
        ((",0.75", ""), "line 2 is damaged"),
    ],
)
def test_a_damaged_one_is_refused(
    change: tuple[str, str], sentence: str, write_run: WriteRun, tmp_path: Path
) -> None:
    run = known_run(write_run("binary", 3, 0.75))
    assert run is not None
    file = tmp_path / "runs.csv"
    write_record(file, [run])
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(UserError, match=sentence):
        read_record(file)
    assert read_record(tmp_path / "none.csv") == {}


def test_the_margin_is_the_one_that_a_run_began_with(write_run: WriteRun) -> None:
    """Another attempt may be made under another one: reports and claims both go by the first."""
    folder = write_run("binary", 3, 0.75, made={"margin": 0.01})
    record = json.loads((folder / "provenance.json").read_text())
    record["attempts"].append({**record["attempts"][0], "margin": 0.05})
    (folder / "provenance.json").write_text(json.dumps(record))
    run = known_run(folder)
    assert run is not None
    assert run.facts["margin"] == "0.01"
