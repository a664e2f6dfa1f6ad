"""The plot of stacks, from what was measured of runs later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bitexp.common.files import write_json
from bitexp.report import figure
from bitexp.report.compare import compare
from bitexp.report.runs import read_runs
from bitexp.report.stack_plot import curve, stacks

Write = Callable[..., Path]


def test_a_stack_is_a_line_over_its_bytes_beside_whole_files(write_run: Write, outputs: Path) -> None:
    for seed in (0, 1):
        metrics = {}
        for limit, accuracy in ((2000, 0.5), (1000, 0.3)):
            part = f"stack/{limit}"
            metrics |= {f"{part}/bytes": limit - 10.0 * seed, f"{part}/accuracy": accuracy + 0.1 * seed}
        write_json(write_run("full", seed) / "measurements.json", {"stack": {"metrics": metrics}})
        write_run("ternary_mean", seed)
    (comparison,) = compare(read_runs([outputs])[0])
    runs = next(row for row in comparison.rows if row.cell.precision == "full").cell.runs
    assert [size for size, _, _ in curve(runs, "accuracy")] == [995, 1995]
    assert [mean for _, mean, _ in curve(runs, "accuracy")] == pytest.approx([0.35, 0.55])
    assert curve(runs, "loss") == []
    with figure.style():
        drawing = stacks(comparison)
    assert drawing is not None
    _, names = drawing.axes[0].get_legend_handles_labels()
    assert sorted(names) == ["full", "full, stack", "ternary_mean"]


def test_without_stacks_there_is_no_plot(write_run: Write, outputs: Path) -> None:
    write_run("full", 0)
    (comparison,) = compare(read_runs([outputs])[0])
    assert stacks(comparison) is None
