"""Values and constants of C code: where they lie, and how they are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Over = Literal["place", "whole"] | None
"""How a result may lie over an argument: see `CTape.call`."""


@dataclass(eq=False)
class Value:
    """Numbers: `rows` of `features`; images are channels of height * width."""

    rows: int
    features: int
    height: int = 0
    width: int = 0
    last: int = -1
    place: int = -1

    @property
    def size(self) -> int:
        """How many numbers."""
        return self.rows * self.features


@dataclass
class Call:
    """A function with its arguments; values stand for where they lie."""

    function: str
    arguments: list[Any]
    out: Value
    over: Over = None


def free_place(size: int, taken: Sequence[Value]) -> int:
    """The first place for so many numbers between values that have theirs."""
    place = 0
    for value in sorted(taken, key=lambda value: value.place):
        if place + size <= value.place:
            break
        place = max(place, value.place + value.size)
    return place


def number_text(number: float) -> str:
    """An fp32 number in C, exactly."""
    text = np.format_float_scientific(np.float32(number), unique=True, trim="0")
    return f"{text}f"


def array_text(head: str, numbers: list[str]) -> str:
    """An array in lines of C."""
    lines, line = [], "   "
    for number in numbers:
        if len(line) + len(number) > 116:
            lines.append(line)
            line = "   "
        line += f" {number},"
    return f"{head} = {{\n" + "\n".join([*lines, line]) + "\n};"
