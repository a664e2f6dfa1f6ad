"""Experiments by precisions, one line each: what is as good as full precision, or better, stands in bold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bitexp.report.columns import Column, Table, cell_text, title, word
from bitexp.report.compare import BASELINE, Comparison, Row, order
from bitexp.report.wording import mean_text

EARNED = ("equivalent", "better")
"""The verdicts that are printed in bold."""


@dataclass(frozen=True)
class Line:
    """The rows of one experiment that may be compared, by what their columns are called."""

    comparison: Comparison
    rows: dict[str, Row]

    @property
    def setting(self) -> str:
        """What tells it from others of its experiment."""
        first, keys = next(iter(self.rows.values())), self.comparison.axes.setting
        return named(keys, first.cell.setting)


def matrix(comparisons: Sequence[Comparison]) -> Table | None:
    """The matrix of all comparisons; None where it would have a single line, which their own table says."""
    lines = tuple(
        Line(comparison, {column_of(comparison, row): row for row in group})
        for comparison in comparisons
        for group in comparison.groups
    )
    if len(lines) < 2:
        return None
    names = sorted({name for line in lines for name in line.rows}, key=order)
    columns = (
        replace(word("experiment", "experiment", lambda line: line.comparison.name), names=True),
        replace(word("setting", "setting", lambda line: line.setting), names=True),
        word("metric", "metric", lambda line: line.comparison.metric),
        *map(precision_column, names),
    )
    caption = (
        f"Mean ± standard deviation over seeds. Bold: {' or '.join(EARNED)}, compared with {BASELINE} on the "
        "same line, within the margin of the experiment and by Holm's correction."
    )
    return Table("Experiments by precisions", columns, lines, caption)


def precision_column(name: str) -> Column:
    """The rows of one precision."""

    def row(line: Line) -> Row | None:
        return line.rows.get(name)

    def text(line: Line) -> str:
        return "" if (one := row(line)) is None else mean_text(one.cell)

    def value(line: Line) -> float | None:
        return None if (one := row(line)) is None else one.cell.score.mean

    def strong(line: Line) -> bool:
        one = row(line)
        return one is not None and one.verdict is not None and one.verdict.word in EARNED

    return Column(name, name, text, value, strong=strong)


def column_of(comparison: Comparison, row: Row) -> str:
    """The name of a row's column: its precision, and its variant where it has one."""
    more = named(comparison.axes.variant, row.cell.variant)
    return f"{row.cell.precision} ({more})" if more else row.cell.precision


def named(keys: Sequence[str], parts: Sequence[Any]) -> str:
    """Values with their titles."""
    pairs = zip(keys, parts, strict=True)
    return ", ".join(f"{title(key, keys)} {cell_text(part)}" for key, part in pairs if part is not None)
