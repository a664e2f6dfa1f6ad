"""Tables on a narrow screen: headings break between words, and what counts least is left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import render
from rich.table import Column, Table

from bitexp.common.format import wrapped

UNLIMITED = 10_000
"""Columns of what is no terminal: a table in a file keeps its cells whole."""


def fitted(table: Table, console: Console, optional: Sequence[str]) -> tuple[Table, list[str]]:
    """A table that fits the console, and the headings of what had to be left out for it.

    Args:
        optional: headings that may be left out, the least important first.
    """
    columns, left_out = list(table.columns), []
    if fits(table, console):
        return table, []
    for heading in (None, *optional):
        if any(str(column.header) == heading for column in columns):
            columns = [column for column in columns if str(column.header) != heading]
            left_out.append(str(heading))
        narrow = rebuilt(table, columns)
        if fits(narrow, console):
            return narrow, [str(column.header) for column in table.columns if column not in columns]
    for column in narrow.columns:
        column.no_wrap = False  # nothing fits: better in pieces than cut off
    return narrow, left_out


def fits(table: Table, console: Console) -> bool:
    """Whether a console shows a table without breaking its cells."""
    unlimited = console.options.update(width=UNLIMITED)
    return console.measure(table, options=unlimited).maximum <= console.width


def rebuilt(table: Table, columns: Sequence[Column]) -> Table:
    """Some columns of a table, no wider than their cells and the longest word of their headings."""
    out = Table(box=table.box, title=table.title)
    for column in columns:
        heading, cells = str(column.header), [render(str(cell)).cell_len for cell in column.cells]
        width = max([*cells, *map(len, heading.split())], default=1)
        out.add_column(
            "\n".join(wrapped(heading, width)), justify=column.justify, no_wrap=True, overflow="fold"
        )
    rows: Any = zip(*(column.cells for column in columns), strict=True)
    for row in rows:
        out.add_row(*row)
    return out
