"""Many precisions at once, by their bits: a table of groups, and a plot that needs no name for each."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from bitexp.common.format import energy_text, size
from bitexp.report import figure
from bitexp.report.columns import Table, axis_columns, numeric, one_line, word
from bitexp.report.compare import Cell, Comparison, Row
from bitexp.report.energy import NODE
from bitexp.report.tables import members, score_columns, setting_column

FEW = 12
"""Rows up to which a table of precisions and a legend say it all."""
FULL = 32


def group_of(cell: Cell) -> float | None:
    """The bits of a weight that a precision is grouped by: 1, 1.25, 1.58, then whole numbers.

    Its codes count, not its scales: 15 levels are of 4 bits. None where the runs are older than this measure.
    """
    bits = cell.metric("size/weight_bits")
    if bits is None:
        return None
    return round(bits, 2) if bits < 2 else math.ceil(bits - 1e-9)


def groups(rows: Sequence[Row]) -> dict[float, list[Row]]:
    """The rows by bits of a weight, the fewest first; empty where they do not make groups.

    They make groups where there are too many for a legend, and several bits.
    """
    found: dict[float, list[Row]] = defaultdict(list)
    for row in rows:
        if (bits := group_of(row.cell)) is not None:
            found[bits].append(row)
    return dict(sorted(found.items())) if len(rows) > FEW and len(found) > 1 else {}


def by_bits_table(comparison: Comparison) -> Table | None:
    """The rows by the bits of their weights, in each group the best first; None where there are no groups."""
    grouped = groups(comparison.rows)
    if not grouped:
        return None
    costs = {
        "bytes": [row.cell.metric("size/total_bytes") for row in comparison.rows],
        "energy": [row.cell.energy() for row in comparison.rows],
    }
    fronts = {
        name: {id(comparison.rows[place]) for chosen in comparison.fronts(values) for place in chosen}
        for name, values in costs.items()
    }
    rows = tuple(
        row
        for group in grouped.values()
        for row in sorted(group, key=lambda row: -comparison.sign * row.cell.score.mean)
    )
    columns = (
        numeric("bits of weights", "weight_bits", lambda row: group_of(row.cell), bits_text),
        numeric("of activations", "activation_bits", activation_bits, bits_text),
        word("precision", "precision", lambda row: row.cell.precision),
        *axis_columns(comparison.axes.setting, lambda row: row.cell.setting, rows),
        *axis_columns(comparison.axes.variant, lambda row: row.cell.variant, rows),
        *score_columns(comparison.metric),
        setting_column("lr", "optimizer.lr"),
        numeric("body", "body_bytes", lambda row: row.cell.metric("size/body_bytes"), size),
        numeric("total", "total_bytes", lambda row: row.cell.metric("size/total_bytes"), size),
        numeric(f"energy, {NODE}", f"joules {NODE}", lambda row: row.cell.energy(), energy_text),
        word("front", "front", lambda row: ", ".join(n for n, chosen in fronts.items() if id(row) in chosen)),
    )
    caption = (
        "Rows by the bits of their weights, the best of each group first. Front: no other row of the same "
        "data and budget is as good at the same bytes (energy) or less."
    )
    return Table("By bits", columns, rows, caption, members)


def activation_bits(row: Row) -> float | None:
    """The bits of an activation, as a mean over the weights that meet it."""
    return row.cell.metric("size/activation_bits")


def bits_text(bits: float) -> str:
    """Bits as people write them: 1.58, 4, and float for those that are not quantized."""
    return "float" if bits == FULL else f"{bits:.3g}"


def draw_groups(panel: Any, comparison: Comparison, shown: Sequence[tuple[Row, float]]) -> None:
    """A colour for each number of bits, hollow where activations stay floats, and names along the front."""
    grouped = groups(comparison.rows)
    palette = dict(zip([bits for bits in grouped if bits != FULL], figure.PRECISIONS[2:] * 4, strict=False))
    palette[FULL] = figure.PRECISIONS[0]
    for bits, rows in grouped.items():
        name = "full precision" if bits == FULL else f"{bits_text(bits)} bit{'s' * (bits != 1)}"
        for row, cost in shown:
            if not any(row is other for other in rows):
                continue
            score, filled = row.cell.score, bits == FULL or activation_bits(row) != FULL
            panel.errorbar(
                cost, score.mean, yerr=score.std or 0.0, fmt="o", markersize=4.5, alpha=0.8, elinewidth=0.8,
                color=palette[bits], markerfacecolor=palette[bits] if filled else "none", label=name,
            )  # fmt: skip
    name_front(panel, comparison, shown)


def name_front(panel: Any, comparison: Comparison, shown: Sequence[tuple[Row, float]]) -> None:
    """The precisions of the front beside their points; of those at about the same cost the best."""
    costs = {id(row): cost for row, cost in shown}
    chosen = comparison.fronts([costs.get(id(row)) for row in comparison.rows])
    for front in chosen:
        rows = [comparison.rows[place] for place in front]
        apart = [*(a for a, b in pairwise(rows) if costs[id(b)] > 1.04 * costs[id(a)]), rows[-1]]
        for row in apart:
            panel.annotate(
                one_line(row.cell.precision), (costs[id(row)], row.cell.score.mean), xytext=(4, 5),
                textcoords="offset points", fontsize=7, color=figure.INK,
            )  # fmt: skip
