"""The plots of a comparison: quality against cost, and how training went. None where there is no data."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure

from bitexp.common.format import energy_text, size
from bitexp.report import figure
from bitexp.report.by_bits import draw_groups, groups
from bitexp.report.columns import cell_text, one_line
from bitexp.report.compare import Cell, Comparison, Row
from bitexp.report.energy import NODE
from bitexp.report.runs import Run
from bitexp.report.wording import particulars
from bitexp.track.folder import validation_of

SHOWN = 12
"""Rows that one plot can tell apart."""
MANY = 400
"""Points beyond which a drawing has pixels of them."""
DASHES = (
    "-",
    (0, (5, 2)),
    (0, (1.5, 1.5)),
    (0, (6, 2, 1.5, 2)),
    (0, (9, 3)),
    (0, (6, 1.5, 1.5, 1.5, 1.5, 1.5)),
)
MARKERS = "osD^vPX*<>ph"
BYTES = "bytes of the packed weights"

Curve = Sequence[tuple[int, float, float]]
"""Steps with mean and standard deviation over seeds."""


def label(comparison: Comparison, cell: Cell) -> str:
    """A cell's precision, with what else tells rows apart."""
    words = [f"{name}={short(cell_text(part))}" for name, part in particulars(comparison, cell)]
    return one_line(", ".join([cell.precision, *words]))


def looks(comparison: Comparison) -> Callable[[Row], dict[str, Any]]:
    """How a row is drawn: the colour says its precision, dashes and markers what else it differs in."""
    palette = figure.colours(comparison.precisions)
    places: dict[str, dict[str, int]] = {}  # by precision, since a colour of its own tells others apart
    for row in comparison.rows:
        of_precision = places.setdefault(row.cell.precision, {})
        of_precision.setdefault(besides_precision(row.cell), len(of_precision))

    def look(row: Row) -> dict[str, Any]:
        place = places[row.cell.precision][besides_precision(row.cell)]
        return {"color": palette[row.cell.precision], "place": place, "label": label(comparison, row.cell)}

    return look


def besides_precision(cell: Cell) -> str:
    """What tells a row from others of its precision."""
    return repr((cell.setting, cell.variant))


HANDLE, LETTER, LINE = 0.6, 0.07, 0.16
"""Inches of a legend: what stands before a name, a letter of it, and the height of a line."""


def legend(drawing: Figure, axes: Any) -> None:
    """One legend for all panels, below them; the figure grows by all of its lines but the first."""
    entries: dict[str, Any] = {}
    for panel in axes.flat:
        handles, names = panel.get_legend_handles_labels()
        entries.update(zip(names, handles, strict=True))
    if not entries:
        return
    letters = int((drawing.get_figwidth() - HANDLE) / LETTER)
    names = [textwrap.fill(name, letters) for name in entries]
    longest = max(len(line) for name in names for line in name.split("\n"))
    columns = min(len(names), max(1, int(drawing.get_figwidth() / (HANDLE + LETTER * longest))))
    lines = -(-sum(1 + name.count("\n") for name in names) // columns)
    drawing.set_figheight(drawing.get_figheight() + LINE * (lines - 1))
    drawing.legend(entries.values(), names, loc="outside lower center", ncols=columns)


def quality(comparison: Comparison) -> Figure | None:
    """Quality against bytes of the packed file and against energy, with the Pareto fronts."""
    costs: dict[str, list[float | None]] = {
        BYTES: [row.cell.metric("size/total_bytes") for row in comparison.rows],
        f"estimated energy of an inference ({NODE})": [row.cell.energy() for row in comparison.rows],
    }
    costs = {name: values for name, values in costs.items() if any(values)}
    if not costs:
        return None
    drawing, axes = figure.new(4.1 * len(costs) + 0.2, 3.5, 1, len(costs), sharey=True)
    for panel, (cost, values) in zip(axes.flat, costs.items(), strict=True):
        for chosen in comparison.fronts(values):
            corners = [(values[i], comparison.rows[i].cell.score.mean) for i in chosen]
            for (x0, y0), (x1, y1) in pairwise(corners):
                panel.plot([x0, x1, x1], [y0, y0, y1], color=figure.MUTED, linewidth=1, zorder=1)
            panel.plot(*zip(*corners, strict=True), "o", markersize=13, markerfacecolor="none",
                       color=figure.MUTED, markeredgewidth=1)  # fmt: skip
        shown = [
            (row, spent) for row, spent in zip(comparison.rows, values, strict=True) if spent is not None
        ]
        if groups(comparison.rows):
            draw_groups(panel, comparison, shown)
        elif len(shown) > SHOWN:
            draw_many(panel, comparison, shown)
        else:
            draw_few(panel, comparison, shown)
        panel.set_xscale("log")
        panel.set_xlabel(cost)
        panel.margins(0.12)
        figure.logarithmic(panel.xaxis, round_size if cost == BYTES else energy_text)
        if comparison.sign < 0:
            panel.invert_yaxis()
    axes[0, 0].set_ylabel(f"{comparison.metric}{' (better above)' if comparison.sign < 0 else ''}")
    legend(drawing, axes)
    return drawing


def draw_few(panel: Any, comparison: Comparison, shown: Sequence[tuple[Row, float]]) -> None:
    """A point for each row that the legend names."""
    look = looks(comparison)
    for row, cost in shown:
        style = look(row)
        marker, score = MARKERS[style.pop("place") % len(MARKERS)], row.cell.score
        panel.errorbar(
            cost, score.mean, yerr=score.std, fmt=marker, capsize=3, markersize=6.5, elinewidth=1, **style
        )


def draw_many(panel: Any, comparison: Comparison, shown: Sequence[tuple[Row, float]]) -> None:
    """More rows than a legend can tell apart: precisions have colours, and the table has the names."""
    palette = figure.colours(comparison.precisions)
    for name in comparison.precisions:
        of_name = [(row.cell.score, cost) for row, cost in shown if row.cell.precision == name]
        if of_name:
            panel.errorbar(
                [cost for _, cost in of_name],
                [score.mean for score, _ in of_name],
                yerr=[score.std or 0.0 for score, _ in of_name],
                fmt="o", markersize=4.5, alpha=0.7, elinewidth=0.8, color=palette[name], label=one_line(name),
                rasterized=len(of_name) > MANY,
            )  # fmt: skip


def round_size(number: float) -> str:
    """Round numbers of bytes, as an axis has them."""
    return size(number).replace(".0 ", " ")


def averaged(runs: Sequence[Run], metric: str) -> Curve:
    """A metric's curve over seeds, at the steps that all runs have."""
    each = [dict(run.curves.get(metric, ())) for run in runs]
    each = [curve for curve in each if curve]
    if not each:
        return []
    steps = sorted(set.intersection(*(set(curve) for curve in each)))
    return [
        (step, statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
        for step in steps
        if (values := [curve[step] for curve in each])
    ]


def curves(comparison: Comparison) -> Figure | None:
    """Learning curves of the chosen settings: validation and training loss, with bands over seeds."""
    validated = validation_of(comparison.metric)
    return lines(comparison, comparison.rows[:SHOWN], (validated, "train/loss"), logarithmic=("train/loss",))


def diagnostics(comparison: Comparison) -> Figure | None:
    """What quantization did over time: zeros, flips, and how far the scales moved."""
    metrics = ("quant/zero_fraction", "quant/flip_rate", "quant/scale_drift")
    rows = [row for row in comparison.rows if any("quant/flip_rate" in run.curves for run in row.cell.runs)]
    return lines(comparison, rows[:SHOWN], metrics, logarithmic=("quant/flip_rate",))


def lines(
    comparison: Comparison, rows: Sequence[Row], metrics: Sequence[str], logarithmic: Sequence[str] = ()
) -> Figure | None:
    """A panel for each metric over the steps, a line with its band for each row."""
    drawn = {m: [(row, c) for row in rows if (c := averaged(row.cell.runs, m))] for m in metrics}
    drawn = {metric: items for metric, items in drawn.items() if items}
    if not drawn:
        return None
    width = {1: 5.4, 2: 4.2, 3: 2.85}[len(drawn)]
    drawing, axes = figure.new(width * len(drawn), 3.3, 1, len(drawn))
    look = looks(comparison)
    for panel, (metric, items) in zip(axes.flat, drawn.items(), strict=True):
        for row, curve in items:
            draw_curve(panel, curve, look(row), above_zero=metric in logarithmic)
        positive = all(mean > 0 for _, curve in items for _, mean, _ in curve)
        if metric in logarithmic and positive:
            panel.set_yscale("log")
            figure.logarithmic(panel.yaxis)
        if metric == "quant/zero_fraction":
            panel.set_ylim(0, max(0.1, 1.08 * panel.get_ylim()[1]))
        panel.set_title(metric)
        panel.set_xlabel("step")
        panel.xaxis.set_major_locator(ticks(4))
    legend(drawing, axes)
    return drawing


def draw_curve(panel: Any, curve: Curve, style: dict[str, Any], above_zero: bool) -> None:
    """A line, and its band where seeds differ; `above_zero` keeps the band on a logarithmic axis."""
    again, dash = divmod(style.pop("place"), len(DASHES))
    steps, means, stds = zip(*curve, strict=True)
    marker = MARKERS[again] if again else "." if len(steps) < 3 else None
    panel.plot(
        steps,
        means,
        linestyle=DASHES[dash],
        marker=marker,
        markersize=4,
        markevery=max(1, len(steps) // 8),
        **style,
    )
    if any(stds):
        high = [mean + std for mean, std in zip(means, stds, strict=True)]
        low = [mean - std for mean, std in zip(means, stds, strict=True)]
        if above_zero:
            low = [max(value, mean / 10) for value, mean in zip(low, means, strict=True)]
        panel.fill_between(steps, low, high, color=style["color"], alpha=0.16, linewidth=0)


def ticks(count: int) -> Any:
    """At most so many intervals between round numbers."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(count, integer=True)


def layers(comparison: Comparison) -> Figure | None:
    """The same by layer, at the end of training: mean over seeds."""
    measures = ("zero_fraction", "flip_rate", "scale")
    rows = [row for row in comparison.rows if any("quant/flip_rate" in run.curves for run in row.cell.runs)]
    last: dict[tuple[str, int, str], float] = {}
    names: dict[str, None] = {}
    for place, row in enumerate(rows[:SHOWN]):
        for measure in measures:
            for layer, value in by_layer(row.cell.runs, f"quant/{measure}/"):
                names[layer] = None
                last[measure, place, layer] = value
    if not names:
        return None
    listed = list(names)[:64]
    drawing, axes = figure.new(8.6, 1.1 + 0.19 * len(listed), 1, 3, sharey=True)
    look = looks(comparison)
    for panel, measure in zip(axes.flat, measures, strict=True):
        for place, row in enumerate(rows[:SHOWN]):
            spots = [
                (last[measure, place, n], y) for y, n in enumerate(listed) if (measure, place, n) in last
            ]
            style = look(row)
            marker = MARKERS[style.pop("place") % len(MARKERS)]
            if spots:
                panel.scatter(*zip(*spots, strict=True), s=22, marker=marker, alpha=0.85, **style)
        panel.set_title(f"quant/{measure}")
        panel.xaxis.set_major_locator(ticks_any(4))
    axes[0, 0].set_yticks(range(len(listed)), [short(name) for name in listed])
    axes[0, 0].set_ylim(len(listed) - 0.4, -0.6)
    legend(drawing, axes)
    return drawing


def ticks_any(count: int) -> Any:
    """At most so many intervals."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(count)


def short(name: str) -> str:
    """A name, its middle left out where it is long."""
    return name if len(name) <= 32 else f"{name[:14]}…{name[-16:]}"


def by_layer(runs: Iterable[Run], prefix: str) -> list[tuple[str, float]]:
    """The last value of each metric below a prefix, as a mean over runs."""
    last: dict[str, list[float]] = {}
    for run in runs:
        for metric, curve in run.curves.items():
            if metric.startswith(prefix):
                last.setdefault(metric.removeprefix(prefix), []).append(curve[-1][1])
    return [(layer, statistics.fmean(values)) for layer, values in last.items()]
