"""Plots over settings: heat maps of learning rate and weight decay, importance, the timeline of trials."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from bitexp.report import figure
from bitexp.report.axes import values
from bitexp.report.columns import plain
from bitexp.report.compare import Cell, Comparison, Row, sortable
from bitexp.report.plots import label, legend, short, ticks
from bitexp.report.runs import Run

FACETS = 12
"""Heat maps in one figure."""
ENTRIES = 14
"""Values of an axis up to which settings are a grid; beyond, they are points."""
STATES = {
    "finished": "#5b7f17",
    "pruned": "#b4860b",
    "failed": "#c02660",
    "stopped": "#8a9099",
    "unfinished": "#8a9099",
}


def pair(found: Comparison) -> tuple[int, int] | None:
    """Which two tuned axes a map shows: learning rate by weight decay where both were swept."""
    keys = list(found.axes.tuned)
    if len(keys) < 2:
        return None
    wanted = [key for key in ("optimizer.lr", "optimizer.weight_decay") if key in keys]
    first, second = [*wanted, *(key for key in keys if key not in wanted)][:2]
    return keys.index(first), keys.index(second)


def heat(found: Comparison, failed: Sequence[Run]) -> Figure | None:
    """A map for each row over two tuned axes, all on one scale; what failed is crossed out."""
    axes_pair = pair(found)
    rows = [row for row in found.rows if len(row.cells) > 1][:FACETS]
    if axes_pair is None or not rows:
        return None
    x, y = axes_pair
    across = min(len(rows), 4)
    down = -(-len(rows) // across)
    cells = [cell for row in rows for cell in row.cells]
    xs, ys = (ordered(cells, place) for place in (x, y))
    filled = len({(cell.tuned[x], cell.tuned[y]) for cell in cells})
    grid = max(len(xs), len(ys)) <= ENTRIES and 2 * filled >= len(xs) * len(ys)
    width = max(1.9, 0.4 + 0.42 * len(xs)) if grid else 2.8
    height = max(1.5, 0.8 + 0.32 * len(ys)) if grid else 2.6
    drawing, panels = figure.new(
        width * across + 0.9, height * down + 0.5, down, across, sharex=True, sharey=True
    )
    scores = [cell.chosen_by for cell in cells]
    scale = Normalize(min(scores), max(scores))
    image: Any = None
    for panel in panels.flat[len(rows) :]:
        panel.set_axis_off()
    for number, (panel, row) in enumerate(zip(panels.flat, rows, strict=False)):
        panel.set_title(label(found, row.cell))
        panel.set_xlabel(found.axes.tuned[x].rpartition(".")[2])
        if number % across == 0:
            panel.set_ylabel(found.axes.tuned[y].rpartition(".")[2].replace("_", " "))
        lost = [values(run, found.axes.tuned) for run in failed if belongs(run, row, found)]
        draw = squares if grid else points
        image = draw(panel, found, row, x, y, xs, ys, scale, lost)
    bar = drawing.colorbar(image, ax=panels, shrink=0.85, aspect=30, pad=0.015)
    bar.set_label(found.judged_by)
    bar.outline.set_visible(False)
    return drawing


def ordered(cells: Sequence[Cell], place: int) -> list[Any]:
    """The values of a tuned axis, in order."""
    return sorted({cell.tuned[place] for cell in cells}, key=lambda value: sortable((value,)))


def belongs(run: Run, row: Row, found: Comparison) -> bool:
    """Whether a run that failed would have been a cell of a row."""
    cell = row.cell
    here = (cell.precision, cell.apart, cell.variant)
    return here == (run.precision, values(run, found.axes.apart), values(run, found.axes.variant))


def squares(
    panel: Any,
    found: Comparison,
    row: Row,
    x: int,
    y: int,
    xs: Sequence[Any],
    ys: Sequence[Any],
    scale: Normalize,
    lost: Sequence[tuple[Any, ...]],
) -> Any:
    """A grid of settings with their values; over further axes the best counts."""
    best: dict[tuple[Any, Any], float] = {}
    for cell in row.cells:
        key = (cell.tuned[x], cell.tuned[y])
        kept = best.get(key)
        best[key] = cell.chosen_by if kept is None else found.sign * max(
            found.sign * kept, found.sign * cell.chosen_by
        )  # fmt: skip
    table = [[best.get((a, b), float("nan")) for a in xs] for b in ys]
    image = panel.pcolormesh(table, norm=scale, cmap="viridis", edgecolor="none")
    for j, b in enumerate(ys):
        for i, a in enumerate(xs):
            if (a, b) in best:
                light = scale(best[a, b]) > 0.6
                text = figure_text(best[a, b])
                panel.text(i + 0.5, j + 0.5, text, ha="center", va="center", fontsize=7,
                           color="#101418" if light else "#ffffff")  # fmt: skip
    for setting in lost:
        if setting[x] in xs and setting[y] in ys and (setting[x], setting[y]) not in best:
            spot = (xs.index(setting[x]) + 0.5, ys.index(setting[y]) + 0.5)
            panel.text(*spot, "×", ha="center", va="center", color=STATES["failed"])
    panel.set_xticks(
        [i + 0.5 for i in range(len(xs))],
        [short(plain(a)) for a in xs],
        rotation=90 * any(len(plain(a)) > 6 for a in xs),
    )
    panel.set_yticks([j + 0.5 for j in range(len(ys))], [short(plain(b)) for b in ys])
    panel.grid(False)
    panel.tick_params(length=0)
    for side in ("left", "bottom"):
        panel.spines[side].set_visible(False)
    return image


def figure_text(score: float) -> str:
    """A value that fits into a square."""
    return f"{score:.3f}".removeprefix("0") if abs(score) < 10 else f"{score:.3g}"


def points(
    panel: Any,
    found: Comparison,
    row: Row,
    x: int,
    y: int,
    xs: Sequence[Any],
    ys: Sequence[Any],
    scale: Normalize,
    lost: Sequence[tuple[Any, ...]],
) -> Any:
    """Settings that were drawn at random, as points; logarithmic where an axis spans decades."""
    cells = row.cells
    image = panel.scatter(
        [cell.tuned[x] for cell in cells], [cell.tuned[y] for cell in cells],
        c=[cell.chosen_by for cell in cells], norm=scale, cmap="viridis", s=26,
        edgecolor=figure.MUTED, linewidth=0.4,
    )  # fmt: skip
    crosses = [(setting[x], setting[y]) for setting in lost]
    if crosses:
        panel.scatter(*zip(*crosses, strict=True), marker="x", s=22, color=STATES["failed"])
    for set_scale, found_values in ((panel.set_xscale, xs), (panel.set_yscale, ys)):
        numbers = [v for v in found_values if isinstance(v, int | float)]
        if numbers and min(numbers) > 0 and max(numbers) / min(numbers) > 20:
            set_scale("log")
            axis = panel.xaxis if set_scale == panel.set_xscale else panel.yaxis
            figure.logarithmic(axis, small=True)
    return image


def sweep_lines(found: Comparison) -> Figure | None:
    """One swept key of the optimizer: the metric over it, a line for each row."""
    rows = [row for row in found.rows if len(row.cells) > 1][:FACETS]
    if len(found.axes.tuned) != 1 or not rows:
        return None
    drawing, axes = figure.new(6.2, 3.3)
    panel, colours = axes[0, 0], figure.colours(list(dict.fromkeys(row.cell.precision for row in rows)))
    numbers = True
    for row in rows:
        cells = sorted(row.cells, key=lambda cell: sortable(cell.tuned))
        xs = [cell.tuned[0] for cell in cells]
        numbers = numbers and all(isinstance(x, int | float) and x > 0 for x in xs)
        panel.errorbar(
            xs if numbers else [short(plain(x)) for x in xs], [cell.chosen_by for cell in cells], marker="o",
            markersize=4, color=colours[row.cell.precision], label=label(found, row.cell),
        )  # fmt: skip
    if numbers:
        panel.set_xscale("log")
        figure.logarithmic(panel.xaxis)
    panel.set_xlabel(found.axes.tuned[0])
    panel.set_ylabel(found.judged_by)
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


def timeline(runs: Sequence[Run]) -> Figure | None:
    """When each run was trained and how it ended, the first one on top."""
    spans = sorted(((*run.span, run) for run in runs if run.span is not None), key=lambda item: item[:2])
    if len(spans) < 2:
        return None
    start = spans[0][0]
    hours = (max(end for _, end, _ in spans) - start).total_seconds() / 3600
    unit, name = (3600.0, "hours") if hours > 2 else (60.0, "minutes")
    drawing, axes = figure.new(8.4, min(6.0, 1.2 + 0.12 * len(spans)))
    panel = axes[0, 0]
    bars: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
    for place, (began, end, run) in enumerate(spans):
        left = (began - start).total_seconds() / unit
        bars[run.status].append((place, left, max((end - began).total_seconds() / unit, 0.0)))
    for status, colour in STATES.items():
        if bars[status]:
            places, lefts, widths = zip(*bars[status], strict=True)
            title = f"{status} ({len(places)})"
            panel.barh(places, widths, left=lefts, height=0.8, color=colour, label=title)
    panel.set_ylim(len(spans) - 0.4, -0.6)
    panel.yaxis.set_major_locator(ticks(6))
    panel.set_ylabel("run")
    middle = statistics.median((end - began).total_seconds() for began, end, _ in spans)
    panel.set_xlabel(f"{name} since {start:%Y-%m-%d %H:%M} UTC; a run takes {middle:.0f} s (median)")
    legend(drawing, axes)
    return drawing
