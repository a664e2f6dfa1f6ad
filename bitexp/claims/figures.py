"""The differences of an answer as a plot: means with their intervals, the margin as a band."""

from __future__ import annotations

import textwrap

from matplotlib.figure import Figure

from bitexp.claims.analyses import Answer
from bitexp.report import figure
from bitexp.report.plots import short

LETTERS = 70
"""Of a line below the plot."""


def differences(answer: Answer) -> Figure | None:
    """A line for each row that has a verdict; None where none has."""
    rows = [row for row in answer.findings if row.verdict is not None]
    if not rows:
        return None
    drawing, axes = figure.new(6.4, 0.9 + 0.3 * len(rows))
    panel = axes[0, 0]
    margin = max(row.verdict.margin for row in rows if row.verdict is not None)
    panel.axvspan(-margin, margin, color=figure.GRID, alpha=0.6, linewidth=0)
    panel.axvline(0, color=figure.MUTED, linewidth=1)
    for height, row in enumerate(rows):
        assert row.verdict is not None
        one = row.verdict
        colour = figure.PRECISIONS[2] if row.claimed else figure.PRECISIONS[1]
        if one.low is not None and one.high is not None:
            panel.plot([one.low, one.high], [height, height], color=colour, linewidth=1.4)
        if one.tost_low is not None and one.tost_high is not None:
            panel.plot([one.tost_low, one.tost_high], [height, height], color=colour, linewidth=3.2)
        panel.plot([one.mean], [height], "o", color=colour, markersize=5)
    panel.set_yticks(range(len(rows)), [short(row.name) for row in rows])
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.grid(axis="y", visible=False)
    label = f"difference: {answer.measure}, {answer.better} is better"
    panel.set_xlabel(textwrap.fill(label, LETTERS))
    return drawing


CAPTION = (
    "Differences on common seeds: the mean, its 90 % interval as the thick line and its 95 % "
    "interval as the thin one. Equivalent: the thick line lies within the band, which is the margin."
)
