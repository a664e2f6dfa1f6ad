"""The plot of stacks: quality over the bytes that a run's file of one-bit blocks was cut to."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Sequence

from matplotlib.figure import Figure

from bitexp.common.format import size as bytes_text
from bitexp.report import figure
from bitexp.report.compare import Comparison
from bitexp.report.plots import MARKERS, label, legend, looks
from bitexp.report.runs import Run

CAPTION = (
    "One file, any size: the quality of stacks of one-bit blocks (arXiv 2410.23918) over the bytes they were "
    "cut to, on the samples that `evaluate --bytes` looked at, with the standard deviation over seeds. "
    "Points are whole packed files on all test data."
)
Point = tuple[float, float, float]
"""Bytes, and mean and deviation of a measure."""


def stacks(comparison: Comparison) -> Figure | None:
    """A line for each row whose stack was measured at two sizes or more; None where there is none."""
    measure = comparison.metric.rpartition("/")[2]
    shared = measure in ("accuracy", "loss")  # what packed files are compared by as well
    measure = measure if shared else "loss"
    lines = [(row, found) for row in comparison.rows if len(found := curve(row.cell.runs, measure)) > 1]
    if not lines:
        return None
    drawing, axes = figure.new(5.6, 3.6)
    panel, look = axes[0, 0], looks(comparison)
    for row, found in lines:
        style = look(row)
        style.pop("place")
        sizes, means, stds = zip(*found, strict=True)
        name = f"{label(comparison, row.cell)}, stack"
        panel.errorbar(
            sizes, means, yerr=stds, marker="o", markersize=3.5, capsize=3, **style | {"label": name}
        )
    for row in comparison.rows:
        cost = row.cell.metric("size/total_bytes")
        if shared and cost is not None:
            style = look(row)
            marker = MARKERS[style.pop("place") % len(MARKERS)]
            score = row.cell.score
            panel.errorbar(
                cost, score.mean, yerr=score.std, fmt=marker, capsize=3, markersize=6.5, elinewidth=1, **style
            )
    panel.set_xscale("log")
    panel.set_xlabel("bytes of the whole network")
    panel.set_ylabel(comparison.metric if shared else "loss on the test part")
    figure.logarithmic(panel.xaxis, bytes_text)
    legend(drawing, axes)
    return drawing


def curve(runs: Sequence[Run], measure: str) -> list[Point]:
    """What was measured of the stacks of some runs, by the size that was asked for."""
    values = defaultdict[int, list[tuple[float, float]]](list)
    for run in runs:
        for name, value in run.later.items():
            match = re.fullmatch(rf"stack/(\d+)/{measure}", name)
            used = run.later.get(f"stack/{match[1]}/bytes") if match else None
            if match and used is not None:
                values[int(match[1])].append((used, value))
    points = []
    for _, found in sorted(values.items()):
        sizes, scores = zip(*found, strict=True)
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        points.append((statistics.fmean(sizes), statistics.fmean(scores), spread))
    return points
