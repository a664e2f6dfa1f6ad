"""What was measured of runs after them, under flipped bits and on corrupted images: a table by precision."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bitexp.report.columns import FILE, LONG, SHORT, Column, Table, axis_columns, word
from bitexp.report.compare import Comparison, Row
from bitexp.report.tables import members
from bitexp.report.wording import mean_text

SETS = {"codes": "", "codes_clamped": ", clamped", "all": ", all tensors"}
"""What is added to a heading for bits of other than the codes as they are."""
LARGE = 1e4
"""From where on numbers are written with an exponent."""
CAPTION = (
    "Accuracy after so many random flips of stored bits, and how many flips of a progressive bit search "
    "(arXiv 1903.12269) take it to chance, of the codes or of all tensors. Clamped: bytes that no codes "
    "make are read as the highest code, not as what they come to. Found: the share of single flips that "
    "loading reports though the checksum fits; in the file with the checksum. Corrupted: the mean "
    "accuracy over the corruptions of CIFAR-10-C at five strengths. Deviations are over seeds."
)


def damage_table(comparison: Comparison) -> Table | None:
    """A row per precision at its chosen setting; None where nothing of this was measured."""
    names = dict.fromkeys(name for row in comparison.rows for run in row.cell.runs for name in run.later)
    measured = [c for name in sorted(names, key=place) if (c := column_of(name)) is not None]
    if not measured:
        return None
    axes, rows = comparison.axes, comparison.rows
    columns = (
        replace(word("precision", "precision", lambda row: row.cell.precision), names=True),
        *axis_columns(axes.setting, lambda row: row.cell.setting, rows),
        *axis_columns(axes.variant, lambda row: row.cell.variant, rows),
        Column(
            comparison.metric,
            comparison.metric,
            lambda row: mean_text(row.cell),
            lambda row: row.cell.score.mean,
        ),
        *measured,
    )
    return Table("Damage and corruption", columns, rows, CAPTION, members)


def place(name: str) -> tuple[int, bool]:
    """Where a metric belongs: codes first, then all tensors, other layouts, and images; losses come last."""
    starts = ("attack/codes/", "attack/codes_clamped/", "attack/", "attack_", "")
    group = next(number for number, start in enumerate(starts) if name.startswith(start))
    return group, "/loss" in name


def column_of(name: str) -> Column | None:
    """The column of a metric; None for what belongs to that of another."""
    if name.endswith("_std") or name.endswith("/reached"):
        return None
    if re.fullmatch(r"corrupted/\w+", name):
        return corruption_column(name)
    match = re.fullmatch(r"attack(?:_(\w+?))?/(?:(codes|codes_clamped|all)/)?(\w+)", name)
    if match is None or match[3] == "accuracy":
        return None
    layout, kind, what = match.groups()
    if what == "loss":
        return column("loss, 0 flips", name, spread_text, LONG) if layout is None else None
    added = SETS.get(kind or "codes", "") + (f", {layout}" if layout else "")
    level = LONG if added else SHORT
    if what == "flips_to_chance":
        return column(f"flips to chance{added}", name, flips_text, level)
    if what == "accuracy_chosen":
        return column(f"after these flips{added}", name, spread_text, level)
    if what == "found":
        return column("found, file" if kind is None else f"found{added}", name, share_text, LONG)
    measure, _, count = what.partition("_")
    title = f"{count} flips{added}"
    return column(
        title if measure == "accuracy" else f"loss, {title}", name, spread_text, level + (measure == "loss")
    )


def corruption_column(name: str) -> Column:
    """The column of a corruption, or of their mean."""
    title = name.removeprefix("corrupted/")
    level = {"accuracy": SHORT}.get(title, FILE if title == "clean" or title.endswith("_5") else LONG)
    heading = {"accuracy": "corrupted", "clean": "not corrupted"}.get(title, title.replace("_", " "))
    return column(heading, name, spread_text, level)


def column(title: str, name: str, text: Callable[[Row, str], str], level: int) -> Column:
    """A column of numbers."""
    return Column(title, name, lambda row: text(row, name), lambda row: mean(row, name), min(level, FILE))


def numbers(row: Row, name: str) -> list[float]:
    """A metric of the runs of a row that have it."""
    return [run.metrics[name] for run in row.cell.runs if name in run.metrics]


def mean(row: Row, name: str) -> Any:
    """Over runs; None where none has it."""
    found = numbers(row, name)
    return statistics.fmean(found) if found else None


def spread_text(row: Row, name: str) -> str:
    """Mean and deviation over seeds."""
    found = numbers(row, name)
    if not found:
        return ""
    spread = f" ± {short(statistics.stdev(found))}" if len(found) > 1 else ""
    return f"{short(statistics.fmean(found))}{spread}"


def short(number: float) -> str:
    """A number to three places; a loss may be of any size."""
    return f"{number:.3f}" if number < LARGE else f"{number:.0e}"


def flips_text(row: Row, name: str) -> str:
    """The mean, as a bound where some searches did not get there, with the deviation over seeds."""
    found = numbers(row, name)
    if not found:
        return ""
    reached = numbers(row, name.replace("flips_to_chance", "reached"))
    bound = "" if all(share == 1 for share in reached) else "> "
    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{bound}{statistics.fmean(found):.1f}{spread}"


def share_text(row: Row, name: str) -> str:
    """A share over all runs."""
    return "" if (share := mean(row, name)) is None else f"{share:.1%}"
