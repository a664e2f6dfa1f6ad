"""A table: what its columns are called, and each cell once as text for people and once as a value."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bitexp.common.format import value_text
from bitexp.report.axes import DATA
from bitexp.report.runs import Run, clean

SHORT, LONG, FILE = 0, 1, 2
GAP = 2
"""Letters that the space between two columns takes."""
ONE_LINE = 8
"""Letters of a heading that is not broken."""


@dataclass(frozen=True)
class Column:
    """A column: its heading, its name for programs, and where its text and its value come from."""

    title: str
    key: str
    text: Callable[[Any], str]
    value: Callable[[Any], Any]
    level: int = SHORT
    """Where it is shown: SHORT tables have fewer columns than LONG ones, files have all."""
    number: bool = True
    shared: bool = False
    """Whether a page may leave it out where it is the same in all rows."""
    names: bool = False
    """Whether it tells rows apart, so that each part of a broken table begins with it."""
    strong: Callable[[Any], bool] = lambda item: False
    """Whether a cell stands in bold letters."""


@dataclass(frozen=True)
class Table:
    """Rows of text with their values; `links` leads from a row to the runs behind it."""

    title: str
    columns: tuple[Column, ...]
    items: tuple[Any, ...]
    caption: str = ""
    links: Callable[[Any], Sequence[Run]] = field(default=lambda item: ())

    def up_to(self, level: int = LONG) -> Table:
        """The same with the columns up to a level, and without those that are empty."""
        filled = [
            column
            for column in self.columns
            if column.level <= level and any(column.text(item) for item in self.items)
        ]
        return replace(self, columns=tuple(filled))

    def first(self, count: int, rest: str = "the folder tables beside this page") -> Table:
        """Its first rows; the caption says where the others are."""
        if len(self.items) <= count:
            return self
        more = f"The first {count} of {len(self.items):,} rows; all are in {rest}."
        return replace(self, items=self.items[:count], caption=f"{self.caption} {more}".strip())

    def condensed(self) -> Table:
        """Without the columns of settings and costs that are the same in all rows; the caption has them."""
        if len(self.items) < 2:
            return self
        same = [c for c in self.columns if c.shared and len({c.text(item) for item in self.items}) == 1]
        if not same:
            return self
        words = ", ".join(f"{column.title} {column.text(self.items[0])}" for column in same)
        kept = tuple(column for column in self.columns if column not in same)
        return replace(self, columns=kept, caption=f"{self.caption} The same in all rows: {words}.".strip())

    def parts(self, width: int) -> list[Table]:
        """The same as tables of about so many letters a line; the last one has the caption.

        Each begins with what tells rows apart. Where that alone takes half of a line there is one table.
        """
        letters = {column.key: GAP + letters_of(column, self.items) for column in self.columns}
        names = tuple(column for column in self.columns if column.names)
        own = sum(letters[column.key] for column in names)
        if 2 * own > width:
            return [self]
        lines, room = [names], width - own
        for column in self.columns:
            if column in names:
                continue
            if letters[column.key] > room and lines[-1] != names:
                lines.append(names)
                room = width - own
            lines[-1] = (*lines[-1], column)
            room -= letters[column.key]
        tables = [replace(self, columns=line, caption="") for line in lines]
        return [*tables[:-1], replace(tables[-1], caption=self.caption)]

    def texts(self) -> list[list[str]]:
        """All cells as text."""
        return [[one_line(column.text(item)) for column in self.columns] for item in self.items]

    def emphasized(self, write: Callable[[str], str], bold: str) -> list[list[str]]:
        """All cells as text of a format, some in bold: `%s` in `bold` stands for what is."""
        return [
            [
                bold % write(text) if column.strong(item) else write(text)
                for column, text in zip(self.columns, row, strict=True)
            ]
            for item, row in zip(self.items, self.texts(), strict=True)
        ]

    def values(self) -> list[dict[str, Any]]:
        """All cells as values by the name of their column."""
        return [{column.key: column.value(item) for column in self.columns} for item in self.items]


def letters_of(column: Column, items: Sequence[Any]) -> int:
    """How wide a column is: its longest cell, or its heading in two lines."""
    return max(*map(len, in_two(column.title)), *(len(column.text(item)) for item in items))


def in_two(title: str) -> tuple[str, str]:
    """A heading in two lines of about the same length; the second one is empty where it is short."""
    if len(title) <= ONE_LINE:
        return title, ""
    breaks = [(title[: at.start()], title[at.end() :]) for at in re.finditer(" ", title)]
    return min(breaks, key=lambda lines: max(map(len, lines)), default=(title, ""))


def numeric(title: str, key: str, value: Callable[[Any], Any], form: Any, level: int = SHORT) -> Column:
    """A column of numbers; None is an empty cell. `form` is a format or a function."""
    write = form if callable(form) else (lambda number: format(number, form))
    return Column(title, key, lambda item: "" if (v := value(item)) is None else write(v), value, level)


def word(title: str, key: str, value: Callable[[Any], Any]) -> Column:
    """A column of words."""
    return Column(title, key, lambda item: cell_text(value(item)), value, number=False)


def one_line(text: str) -> str:
    """Without line breaks and control characters, which a terminal would obey, and what no file can hold."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", clean(text))


def cell_text(value: Any, digits: int = 4) -> str:
    """A value of a config in a table: as one would type it, nothing for null."""
    return "" if value is None else value_text(value, digits)


def axis_columns(
    keys: Sequence[str], part: Callable[[Any], Sequence[Any]], items: Sequence[Any]
) -> list[Column]:
    """A column for each axis of a setting, which tells rows apart; numbers stand on the right."""

    def column(place: int, key: str) -> Column:
        def value(item: Any) -> Any:
            return part(item)[place]

        numbers = all(isinstance(value(item), int | float) for item in items)
        return replace(word(title(key, keys), key, value), number=numbers, names=True)

    return [column(place, key) for place, key in enumerate(keys)]


def title(key: str, keys: Sequence[str]) -> str:
    """A key's last word for people, the whole key where two end alike or it would be another column's."""
    last = last_word(key)
    alone = sum(last_word(other) == last for other in keys) == 1 and last not in TAKEN
    return last.replace("_", " ") if alone else key


TAKEN = ("precision", "seeds", "runs")
"""Headings of other columns."""


def last_word(key: str) -> str:
    """What a key is called where no other ends alike: `model.name` is what is typed as model=."""
    return "data" if key == DATA else key.removesuffix(".name").rpartition(".")[2]
