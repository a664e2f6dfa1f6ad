"""A sweep as parallel coordinates: an axis for precision, each swept key and the metric; a line a setting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from bitexp.report import figure
from bitexp.report.columns import cell_text, title
from bitexp.report.compare import Cell, Comparison, order, sortable
from bitexp.report.plots import MANY, short
from bitexp.report.sweep_plots import ENTRIES, spans_decades
from bitexp.track.folder import is_number

FEWEST = 6
"""Settings from which lines show more than a table does."""
BUNDLE = 0.06
"""How far the lines through one choice are spread, by their values of the metric."""
LABELS = 6
"""Labels of an axis of numbers that are no few choices."""


def parallel(comparison: Comparison) -> Figure | None:
    """The settings of a sweep over at least two keys; None where there is none."""
    cells = [cell for row in comparison.rows if len(row.cells) > 1 for cell in row.cells]
    axes = swept(comparison, cells)
    if len(cells) < FEWEST or len(axes) < 2:
        return None
    if len(comparison.precisions) > 1:
        names = sorted({cell.precision for cell in cells}, key=order)
        axes = [("precision", [cell.precision for cell in cells], names), *axes]
    scores = [cell.chosen_by for cell in cells]
    drawing, panels = figure.new(1.6 + 1.5 * len(axes), 3.6)
    panel = panels[0, 0]
    scale = Normalize(min(scores), max(scores))
    apart = [BUNDLE * (float(scale(score)) - 0.5) for score in scores]
    columns = [*(place(values, choices, apart) for _, values, choices in axes), place(scores, [], apart)]
    colours = colormaps["viridis"]
    chosen = {id(row.cell) for row in comparison.rows}
    ranked = sorted(range(len(cells)), key=lambda i: (id(cells[i]) in chosen, comparison.sign * scores[i]))
    best = [id(cells[i]) in chosen for i in ranked]
    panel.add_collection(
        LineCollection(
            [[(x, heights[i]) for x, (heights, _) in enumerate(columns)] for i in ranked],
            colors=[
                colours(scale(scores[i]), 1.0 if thick else 0.6)
                for i, thick in zip(ranked, best, strict=True)
            ],
            linewidths=[2.4 if thick else 0.9 for thick in best],
            rasterized=len(cells) > MANY,
        )
    )
    for x, (_, labels) in enumerate(columns):
        panel.axvline(x, color=figure.MUTED, linewidth=0.8, zorder=3)
        for height, text in labels:
            panel.text(
                x + 0.02, height, text, fontsize=7, va="center", color=figure.INK, zorder=4,
                bbox={"facecolor": figure.PAPER, "edgecolor": "none", "alpha": 0.85, "pad": 1},
            )  # fmt: skip
    panel.set_xticks(
        range(len(columns)), [*(short(name) for name, _, _ in axes), comparison.chosen_by_metric]
    )
    panel.set_yticks([])
    panel.set_ylim(-BUNDLE, 1 + BUNDLE)
    panel.set_xlim(-0.05, len(columns) - 0.6)
    panel.grid(False)
    panel.tick_params(length=0)
    for side in ("left", "bottom"):
        panel.spines[side].set_visible(False)
    return drawing


def swept(comparison: Comparison, cells: Sequence[Cell]) -> list[tuple[str, list[Any], list[Any]]]:
    """Each key that differs between cells: its title, their values, and all there are where they are few."""
    axes = comparison.axes
    found = []
    for keys, part in (
        (axes.setting, "setting"), (axes.variant, "variant"), (axes.hyperparameters, "hyperparameters"),
    ):  # fmt: skip
        for number, key in enumerate(keys):
            values = [getattr(cell, part)[number] for cell in cells]
            distinct = sorted(set(values), key=lambda value: sortable((value,)))
            if len(distinct) > 1:
                few = len(distinct) <= ENTRIES or not all(map(is_number, values))
                found.append((title(key, keys), values, distinct if few else []))
    return found


def place(
    values: Sequence[Any], choices: Sequence[Any], apart: Sequence[float]
) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights between 0 and 1 of values on their axis, and its labels.

    Choices stand at equal distances, and the lines through one are so far `apart` from it; numbers by their
    size, logarithmically where they span decades.
    """
    if choices:
        heights = {value: i / max(1, len(choices) - 1) for i, value in enumerate(choices)}
        lines = [heights[value] + offset for value, offset in zip(values, apart, strict=True)]
        named = choices[:: -(-len(choices) // ENTRIES)]
        return lines, [(heights[value], short(cell_text(value))) for value in named]
    logarithmic = spans_decades(values)
    numbers = [math.log(value) if logarithmic else float(value) for value in values]
    low, high = min(numbers), max(numbers)
    reach = (high - low) or 1.0
    ticks = [i / (LABELS - 1) for i in range(LABELS)]
    marks = [low + tick * reach for tick in ticks]
    labels = [cell_text(math.exp(mark) if logarithmic else mark, 3) for mark in marks]
    return [(number - low) / reach for number in numbers], list(zip(ticks, labels, strict=True))
