"""Numbers, sizes, time spans, energies, values and paths as people write them."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any


def amount(number: float) -> str:
    """A count for people: 136,010 or 5.36 M."""
    return f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number:,.0f}"


def counted(number: int, unit: str) -> str:
    """So many of something: 1 step, 1,293 steps."""
    return f"{number:,} {unit if number == 1 else UNUSUAL.get(unit, f'{unit}s')}"


UNUSUAL = {"batch": "batches", "process": "processes"}
"""Plurals that take more than an s."""


def size(number: float) -> str:
    """Bytes for people."""
    for unit, digits in {"B": 0, "kB": 1, "MB": 1}.items():
        if round(number, digits) < 1000:
            return f"{number:.{digits}f} {unit}"
        number /= 1000
    return f"{number:.2f} GB"


def duration(seconds: float) -> str:
    """A time span for people: 52 s, 3:05, 1:02:33."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def path_text(path: Path) -> str:
    """A path as a user would type it: relative where it lies below the current folder."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """A text in lines of a width, broken between words alone; `indent` begins all but the first."""
    return textwrap.wrap(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ) or [""]


def value_text(value: Any, digits: int | None = None) -> str:
    """A value of a config as one would type it: null, true, 0.01; floats to some digits."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.{digits}g}" if isinstance(value, float) and digits is not None else str(value)


def energy_text(joules: float) -> str:
    """Joules for people: 890 nJ."""
    for unit, factor in {"pJ": 1e12, "nJ": 1e9, "µJ": 1e6, "mJ": 1e3}.items():
        if float(f"{joules * factor:.3g}") < 1000:
            return f"{joules * factor:.3g} {unit}"
    return f"{joules:.3g} J"
