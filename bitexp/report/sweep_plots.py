"""Plots over settings: heat maps of learning rate and weight decay, importance, the timeline of trials."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from bitexp.report import figure
from bitexp.report.axes import values
from bitexp.report.columns import cell_text, one_line
from bitexp.report.compare import Cell, Comparison, Row, sortable
from bitexp.report.plots import MANY, label, legend, short
from bitexp.report.runs import Run

FACETS = 12
"""Heat maps in one figure."""
NAMED = 48
"""Runs that the timeline names; of more runs it names every second or third, and so on."""
ENTRIES = 14
"""Values of an axis up to which settings are a grid; beyond, they are points."""
STATES = {
    "finished": "#5b7f17",
    "pruned": "#b4860b",
    "failed": "#c02660",
    "stopped": "#8a9099",
    "unfinished": "#8a9099",
}


@dataclass(frozen=True)
class Map:
    """Two hyperparameters that maps show, their values over all rows, and one scale of colours."""

    comparison: Comparison
    x: int
    y: int
    xs: list[Any]
    ys: list[Any]
    scale: Normalize
    grid: bool
    """Whether the settings fill a grid; else they are points."""

    def spot(self, hyperparameters: Sequence[Any]) -> tuple[Any, Any]:
        """Where a setting lies on the map."""
        return hyperparameters[self.x], hyperparameters[self.y]

    def name(self, place: int) -> str:
        """A hyperparameter in one word."""
        return self.comparison.axes.hyperparameters[place].rpartition(".")[2]


def map_of(comparison: Comparison, rows: Sequence[Row]) -> Map | None:
    """Learning rate by weight decay where both were swept, else the first two hyperparameters."""
    keys = list(comparison.axes.hyperparameters)
    if len(keys) < 2 or not rows:
        return None
    wanted = [key for key in ("optimizer.lr", "optimizer.weight_decay") if key in keys]
    x, y = (keys.index(key) for key in [*wanted, *(key for key in keys if key not in wanted)][:2])
    cells = [cell for row in rows for cell in row.cells]
    xs, ys = (ordered(cells, place) for place in (x, y))
    scores = [cell.chosen_by for cell in cells]
    filled = len({(cell.hyperparameters[x], cell.hyperparameters[y]) for cell in cells})
    grid = max(len(xs), len(ys)) <= ENTRIES and 2 * filled >= len(xs) * len(ys)
    return Map(comparison, x, y, xs, ys, Normalize(min(scores), max(scores)), grid)


def heat(comparison: Comparison, failed: Sequence[Run]) -> Figure | None:
    """A map for each row over two hyperparameters, all on one scale; what failed is crossed out."""
    rows = [row for row in comparison.rows if len(row.cells) > 1][:FACETS]
    map_ = map_of(comparison, rows)
    if map_ is None:
        return None
    across = min(len(rows), 4)
    drawing, panels = facets(map_, len(rows), across)
    image: Any = None
    for number, (panel, row) in enumerate(zip(panels.flat, rows, strict=False)):
        panel.set_title(label(comparison, row.cell))
        panel.set_xlabel(map_.name(map_.x))
        if number % across == 0:
            panel.set_ylabel(map_.name(map_.y).replace("_", " "))
        keys = comparison.axes.hyperparameters
        lost = [map_.spot(values(run, keys)) for run in failed if belongs(run, row, comparison)]
        image = (squares if map_.grid else points)(panel, map_, row, lost)
    bar = drawing.colorbar(image, ax=panels, shrink=0.85, aspect=30, pad=0.015)
    bar.set_label(comparison.chosen_by_metric)
    bar.outline.set_visible(False)
    return drawing


def facets(map_: Map, count: int, across: int) -> tuple[Figure, Any]:
    """A figure with a panel for each map, as large as its squares need."""
    down = -(-count // across)
    width = max(1.9, 0.4 + 0.42 * len(map_.xs)) if map_.grid else 2.8
    height = max(1.5, 0.8 + 0.32 * len(map_.ys)) if map_.grid else 2.6
    drawing, panels = figure.new(
        width * across + 0.9, height * down + 0.5, down, across, sharex=True, sharey=True
    )
    for panel in panels.flat[count:]:
        panel.set_axis_off()
    return drawing, panels


def ordered(cells: Sequence[Cell], place: int) -> list[Any]:
    """The values of a hyperparameter, in order."""
    return sorted({cell.hyperparameters[place] for cell in cells}, key=lambda value: sortable((value,)))


def belongs(run: Run, row: Row, comparison: Comparison) -> bool:
    """Whether a run that failed would have been a cell of a row."""
    cell, axes = row.cell, comparison.axes
    here = (cell.precision, cell.setting, cell.variant)
    return here == (run.precision, values(run, axes.setting), values(run, axes.variant))


def squares(panel: Any, map_: Map, row: Row, lost: Sequence[tuple[Any, Any]]) -> Any:
    """A grid of settings with their values; over further hyperparameters the best counts."""
    best = best_by_spot(map_, row)
    xs, ys = map_.xs, map_.ys
    table = [[best.get((a, b), float("nan")) for a in xs] for b in ys]
    image = panel.pcolormesh(table, norm=map_.scale, cmap="viridis", edgecolor="none")
    centre = {(a, b): (i + 0.5, j + 0.5) for i, a in enumerate(xs) for j, b in enumerate(ys)}
    centred: Any = {"ha": "center", "va": "center"}
    for spot, score in best.items():
        ink = "#101418" if map_.scale(score) > 0.6 else "#ffffff"
        panel.text(*centre[spot], in_a_square(score), fontsize=7, color=ink, **centred)
    for spot in lost:
        if spot in centre and spot not in best:
            panel.text(*centre[spot], "×", color=STATES["failed"], **centred)
    upright = 90 * any(len(cell_text(a)) > 6 for a in xs)
    panel.set_xticks([i + 0.5 for i in range(len(xs))], [short(cell_text(a)) for a in xs], rotation=upright)
    panel.set_yticks([j + 0.5 for j in range(len(ys))], [short(cell_text(b)) for b in ys])
    panel.grid(False)
    panel.tick_params(length=0)
    for side in ("left", "bottom"):
        panel.spines[side].set_visible(False)
    return image


def best_by_spot(map_: Map, row: Row) -> dict[tuple[Any, Any], float]:
    """The best value at each place of a map."""
    better = max if map_.comparison.sign > 0 else min
    best: dict[tuple[Any, Any], float] = {}
    for cell in row.cells:
        spot = map_.spot(cell.hyperparameters)
        best[spot] = better(best.get(spot, cell.chosen_by), cell.chosen_by)
    return best


def in_a_square(score: float) -> str:
    """A value that fits into a square."""
    return f"{score:.3f}".removeprefix("0") if abs(score) < 10 else f"{score:.3g}"


def points(panel: Any, map_: Map, row: Row, lost: Sequence[tuple[Any, Any]]) -> Any:
    """Settings that were drawn at random, as points; logarithmic where an axis spans decades."""
    spots = [map_.spot(cell.hyperparameters) for cell in row.cells]
    image = panel.scatter(
        *zip(*spots, strict=True), c=[cell.chosen_by for cell in row.cells], norm=map_.scale,
        cmap="viridis", s=26, edgecolor=figure.MUTED, linewidth=0.4, rasterized=len(spots) > MANY,
    )  # fmt: skip
    if lost:
        panel.scatter(*zip(*lost, strict=True), marker="x", s=22, color=STATES["failed"])
    if spans_decades(map_.xs):
        panel.set_xscale("log")
        figure.logarithmic(panel.xaxis, small=True)
    if spans_decades(map_.ys):
        panel.set_yscale("log")
        figure.logarithmic(panel.yaxis, small=True)
    return image


def spans_decades(entries: Sequence[Any]) -> bool:
    """Whether the numbers among some values lie more than a decade apart, all above zero."""
    numbers = [value for value in entries if isinstance(value, int | float)]
    return bool(numbers) and min(numbers) > 0 and max(numbers) / min(numbers) > 20


def sweep_lines(comparison: Comparison) -> Figure | None:
    """One swept key of the optimizer: the metric over it, a line for each row."""
    rows = [row for row in comparison.rows if len(row.cells) > 1][:FACETS]
    if len(comparison.axes.hyperparameters) != 1 or not rows:
        return None
    drawing, axes = figure.new(6.2, 3.3)
    panel, colours = axes[0, 0], figure.colours(comparison.precisions)
    numbers = True
    for row in rows:
        cells = sorted(row.cells, key=lambda cell: sortable(cell.hyperparameters))
        xs = [cell.hyperparameters[0] for cell in cells]
        numbers = numbers and all(isinstance(x, int | float) and x > 0 for x in xs)
        panel.errorbar(
            xs if numbers else [short(cell_text(x)) for x in xs], [cell.chosen_by for cell in cells],
            marker="o", markersize=4, color=colours[row.cell.precision], label=label(comparison, row.cell),
        )  # fmt: skip
    if numbers:
        panel.set_xscale("log")
        figure.logarithmic(panel.xaxis)
    panel.set_xlabel(comparison.axes.hyperparameters[0])
    panel.set_ylabel(comparison.chosen_by_metric)
    legend(drawing, axes)
    return drawing


def importance_bars(parts: dict[str, float]) -> Figure | None:
    """What share of the differences between settings each key explains."""
    if not parts:
        return None
    items = sorted(parts.items(), key=lambda item: item[1])
    drawing, axes = figure.new(6.2, 0.9 + 0.3 * len(items))
    panel = axes[0, 0]
    panel.barh(
        [short(name) for name, _ in items],
        [share for _, share in items],
        color=figure.PRECISIONS[2],
        height=0.6,
    )
    for place, (_, share) in enumerate(items):
        panel.text(share, place, f" {share:.2f}", va="center", color=figure.INK, fontsize=8)
    panel.margins(x=0.12)
    panel.grid(False)
    panel.set_xlabel("importance")
    return drawing


def run_label(run: Run) -> str:
    """A run in the timeline: what it is, and its folder."""
    return one_line(f"{short(run.precision)}, seed {short(cell_text(run.seed))} · {short(run.id)}")


def timeline(runs: Sequence[Run]) -> Figure | None:
    """When each run was trained and how it ended, the first one on top."""
    spans = sorted(((*run.span, run) for run in runs if run.span is not None), key=lambda item: item[:2])
    if len(spans) < 2:
        return None
    start = spans[0][0]
    hours = (max(end for _, end, _ in spans) - start).total_seconds() / 3600
    unit, name = (3600.0, "hours") if hours > 2 else (60.0, "minutes")
    height = 1.4 + 0.15 * min(len(spans), NAMED)
    drawing, axes = figure.new(8.4, height)
    panel = axes[0, 0]
    bars: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
    for place, (began, end, run) in enumerate(spans):
        left = (began - start).total_seconds() / unit
        bars[run.status].append((place, left, max((end - began).total_seconds() / unit, 0.0)))
    for status, colour in STATES.items():
        if bars[status]:
            places, lefts, widths = zip(*bars[status], strict=True)
            title = f"{status} ({len(places)})"
            ends = [left + width for left, width in zip(lefts, widths, strict=True)]
            panel.hlines(
                places, lefts, ends, color=colour, label=title, rasterized=len(places) > MANY,
                linewidth=max(0.8, min(7.0, 50 * height / len(spans))), capstyle="projecting",
            )  # fmt: skip
    panel.set_ylim(len(spans) - 0.4, -0.6)
    named = range(0, len(spans), -(-len(spans) // NAMED))
    panel.set_yticks(named, [run_label(spans[place][2]) for place in named])
    panel.grid(axis="y", visible=False)
    middle = statistics.median((end - began).total_seconds() for began, end, _ in spans)
    panel.set_xlabel(f"{name} since {start:%Y-%m-%d %H:%M} UTC; a run takes {middle:.0f} s (median)")
    legend(drawing, axes)
    return drawing
