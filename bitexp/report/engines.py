"""What runs were found to compute in the engines of others, by `python -m bitexp evaluate RUN`: a table."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from bitexp.common.format import amount, size
from bitexp.report.columns import FILE, LONG, SHORT, Column, Table, axis_columns, numeric, word
from bitexp.report.compare import Comparison, Row
from bitexp.report.damage import mean, numbers, spread_text
from bitexp.report.tables import members

QUALITIES = {"accuracy": "accuracy", "bits_per_byte": "bits per byte"}
CAPTION = (
    "The packed files in other engines, on as many samples of the test part as are given (of text, tokens). "
    "Difference: from bitexp's on the same samples. Same: the share of predictions that are bitexp's. KL: of "
    "distributions, from bitexp's, in nats. Speed is that of whole batches, bitexp's with the kernel "
    "reference. As promised: predictions differ only where margins are small, and the quality is the same."
)


@dataclass(frozen=True)
class Line:
    """A precision at its chosen setting, in an engine."""

    row: Row
    engine: str

    def name(self, figure: str) -> str:
        """Of a metric."""
        return f"engine/{self.engine}/{figure}"

    def mean(self, figure: str) -> Any:
        """Over the runs that have it; None where none has."""
        return mean(self.row, self.name(figure))

    def text(self, figure: str) -> str:
        """Mean and deviation over seeds."""
        return spread_text(self.row, self.name(figure))

    @property
    def verdict(self) -> str:
        """Whether it computes the same, of all runs."""
        flaws = numbers(self.row, self.name("flaws"))
        return "computes something else" if any(flaws) else "as promised" if flaws else ""


def engine_table(comparison: Comparison) -> Table | None:
    """A row per precision and engine; None where nothing was run in one."""
    lines = tuple(Line(row, name) for row in comparison.rows for name in engines_of(row))
    if not lines:
        return None
    axes = comparison.axes
    columns = [
        replace(word("precision", "precision", lambda line: line.row.cell.precision), names=True),
        *axis_columns(axes.setting, lambda line: line.row.cell.setting, lines),
        *axis_columns(axes.variant, lambda line: line.row.cell.variant, lines),
        replace(word("runtime", "runtime", lambda line: line.engine), names=True),
        *(spread_column(title, name) for name, title in QUALITIES.items()),
        number("difference", "difference", "+.4f"),
        number("same", "same", lambda share: f"{share:.2%}"),
        word("verdict", "verdict", lambda line: line.verdict),
        number("samples", "samples", ",.0f", LONG),
        number("KL", "divergence", ".1e", LONG),
        number("rms of logits", "rms", ".1e", FILE),
        number("small margins", "unsure", lambda share: f"{share:.2%}", FILE),
        number("per second", "per_second", ",.0f"),
        number("per second, bitexp", "per_second_bitexp", ",.0f", LONG),
        number("bytes", "bytes", size),
        number("flash", "flash_bytes", size),
        number("static memory", "static_bytes", size),
        number("stack", "stack_bytes", size),
        number("instructions", "instructions", amount),
    ]
    return Table("Other engines", tuple(columns), lines, CAPTION, lambda line: members(line.row))


def engines_of(row: Row) -> list[str]:
    """Those in which a run of it was tried."""
    names = (re.fullmatch(r"engine/(.+)/same", name) for run in row.cell.runs for name in run.later)
    return sorted({match[1] for match in names if match})


def number(title: str, figure: str, form: Any, level: int = SHORT) -> Column:
    """A column of means."""
    return numeric(title, figure, lambda line: line.mean(figure), form, level)


def spread_column(title: str, figure: str) -> Column:
    """A column of means and deviations."""
    return Column(title, figure, lambda line: line.text(figure), lambda line: line.mean(figure))
