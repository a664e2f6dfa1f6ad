"""Runs that began with another run: compared as what they are, with where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitexp.report.compare import Comparison, compare
from bitexp.report.lineage import lineage_table
from bitexp.report.runs import read_runs
from bitexp.report.tables import precision_table
from bitexp.report.write import write_report
from tests.support.run_folders import WriteRun

UNTRAINED = {"lr_decay_sum": 0, "step_ms": None, "steps": 0, "seconds": 3.0}


@pytest.fixture
def compared(outputs: Path) -> Any:
    def only() -> Comparison:
        (comparison,) = compare(read_runs([outputs])[0])
        return comparison

    return only


def write_ptq(write_run: WriteRun, seed: int, score: float, setting: str = "abcdef99") -> None:
    """A run without steps that began with the full run of its seed."""
    source = f"full{seed}{setting}"
    record = {"kind": "run", "path": f"outputs/made_up/{source}", "identity": source}
    behind = {
        "run": f"made_up/{source}", "quantizer": "full", "seed": seed, "setting": setting, "steps": 100,
        "seconds": 50.0,
    }  # fmt: skip
    write_run(
        "ternary_mean", seed, score,
        typed=["+recipe=ptq", f"start.from={record['path']}"], result=UNTRAINED,
        made={"start": record, "ancestors": [behind]}, start__identity=source, start__from=record["path"],
        trainer__max_steps=0,
    )  # fmt: skip


def write_all(write_run: WriteRun) -> None:
    for seed in (0, 1, 2):
        write_run("full", seed, 0.9 + 0.01 * seed)
        write_run("ternary_mean", seed, 0.88 + 0.01 * seed)
        write_ptq(write_run, seed, 0.7 + 0.01 * seed)


def test_they_are_rows_of_the_same_comparison_over_their_seeds(write_run: WriteRun, compared: Any) -> None:
    """Not one for each source, and not another budget: the same baseline and the same Pareto front."""
    write_all(write_run)
    comparison = compared()
    table = precision_table(comparison)
    rows = [(v["precision"], v.get("recipe"), v["seeds"], v["difference"]) for v in table.values()]
    assert [(p, t, s) for p, t, s, _ in rows] == [
        ("full", None, 3), ("ternary_mean", None, 3), ("ternary_mean", "ptq", 3)
    ]  # fmt: skip
    assert [d for *_, d in rows] == [None, pytest.approx(-0.02), pytest.approx(-0.2)]
    assert len(comparison.groups) == len(comparison.pools) == 1
    texts = dict(zip((c.key for c in table.columns), table.texts()[2], strict=True))
    assert (texts["optimizer.lr"], texts["step_ms"]) == ("", "")


def test_sources_of_other_settings_are_other_rows(write_run: WriteRun, compared: Any) -> None:
    write_all(write_run)
    for seed in (0, 1, 2):
        write_ptq(write_run, seed, 0.75, setting="fedcba11")
    rows = [v for v in precision_table(compared()).values() if v["recipe"] == "ptq"]
    assert [row["start.identity"] for row in rows] == ["full (abcdef)", "full (fedcba)"]


def test_the_lineage_has_the_cost_of_all(write_run: WriteRun, compared: Any) -> None:
    write_all(write_run)
    table = lineage_table(compared())
    assert table is not None
    (row,) = table.values()
    assert row["start"] == "full"
    assert (row["steps"], row["all_steps"], row["seconds"], row["all_seconds"]) == (0, 100, 3.0, 53.0)
    assert "recipe ptq" in row["variant"]


def test_a_teacher_and_a_foreign_source_are_named(write_run: WriteRun, compared: Any) -> None:
    teacher = {"kind": "run", "path": "outputs/t", "identity": "t"}
    behind = [{"run": "x/t", "quantizer": "full", "setting": "s", "steps": 7, "seconds": 1.0}]
    start = {"kind": "torchvision", "path": "torchvision:resnet18", "identity": "hash"}
    write_run("binary", made={"teacher": teacher, "start": start, "ancestors": behind})
    table = lineage_table(compared())
    assert table is not None
    (row,) = table.values()
    assert (row["start"], row["teacher"], row["all_steps"]) == ("torchvision:resnet18", "full", 107)


def test_nothing_is_said_where_all_began_at_random(write_run: WriteRun, compared: Any) -> None:
    write_run("full")
    assert lineage_table(compared()) is None


def test_a_report_of_runs_without_steps_alone(write_run: WriteRun, outputs: Path, tmp_path: Path) -> None:
    """No curves, no pace."""
    write_ptq(write_run, 0, 0.8)
    runs, problems = read_runs([outputs])
    page = write_report(compare(runs), runs, problems, [], tmp_path / "report")
    assert "Lineage" in page.read_text()
    assert "started from" in (tmp_path / "report" / "report.md").read_text()
