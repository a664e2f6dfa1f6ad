"""Is a run that was made again the same, within the band of its seeds, or different, and since when?"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bitexp.report.runs import Run
from bitexp.report.stats import quantile
from bitexp.track.folder import UNIMPORTANT, checksum
from bitexp.track.packages import packages_of_run

OF_THE_MACHINE = ("time/", "memory/")
"""Beginnings of metrics that differ from run to run."""
FEWEST = 3
"""Seeds that make a band."""
SOURCES = (".from", ".run")
"""Ends of keys that say what a run starts from, which no id counts by them."""
NO_AXIS = (
    "seed", "start.identity", "distill.teacher.identity",
    *(key for key in UNIMPORTANT if not key.endswith(SOURCES)),
)  # fmt: skip
"""Keys in which the runs of a band may differ, with all below them: the seed, and what changes no result."""

Word = Literal["equal to the bit", "within the band of its seeds", "different", "not the same bits"]


@dataclass(frozen=True)
class Band:
    """Where one more run of the same setting lies with a probability of 95 %, by the seeds that are there."""

    low: float
    high: float
    seeds: int

    def has(self, value: float) -> bool:
        """Whether a value lies in it."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Sameness:
    """What two runs of one config have in common.

    `not the same bits` is said where there are too few seeds to make a band of.
    """

    word: Word
    step: int | None
    """The first step at which a metric differs; None where none does."""
    metric: str | None
    """Which one."""
    values: tuple[float, float] | None
    band: Band | None


def band(values: Sequence[float]) -> Band | None:
    """The prediction interval of Student's t for one more value; None for fewer than three."""
    if len(values) < FEWEST:
        return None
    reach = quantile(len(values) - 1) * statistics.stdev(values) * (1 + 1 / len(values)) ** 0.5
    middle = statistics.fmean(values)
    return Band(middle - reach, middle + reach, len(values))


def compare_again(before: Run, again: Run, others: Iterable[Run] = ()) -> Sameness:
    """A finished run and the same made again.

    Args:
        others: finished runs; those that differ from the first one in the seed alone make its band.
    """
    step, metric, values = first_difference(before.curves, again.curves)
    if step is None and same_files(before.path, again.path):
        return Sameness("equal to the bit", None, None, None, None)
    seeds = {run.seed: run.score for run in [before, *others] if is_alike(before, run)}
    known = band(list(seeds.values()))
    if known is None:
        return Sameness("not the same bits", step, metric, values, None)
    word: Word = "within the band of its seeds" if known.has(again.score) else "different"
    return Sameness(word, step, metric, values, known)


Curves = Mapping[str, Sequence[tuple[int, float]]]


def first_difference(
    before: Curves, again: Curves
) -> tuple[int | None, str | None, tuple[float, float] | None]:
    """The first step at which a metric that both have is another, which one, and its values.

    Of several the one that is first in the first run counts.
    """
    found: tuple[int, str, tuple[float, float]] | None = None
    for name, curve in before.items():
        if name.startswith(OF_THE_MACHINE) or name not in again:
            continue
        other = dict(again[name])
        for step, value in curve:
            if step in other and other[step] != value and (found is None or step < found[0]):
                found = step, name, (value, other[step])
    return found or (None, None, None)


def same_files(before: Path, again: Path) -> bool:
    """Whether the packed networks are the same, byte by byte."""
    files = [folder / "packed.safetensors" for folder in (before, again)]
    return all(map(Path.is_file, files)) and checksum(files[0]) == checksum(files[1])


def is_alike(run: Run, other: Run) -> bool:
    """Whether a finished run differs from another in its seed alone."""
    return other.finished and setting(run) == setting(other) and run.data == other.data


def setting(run: Run) -> dict[str, Any]:
    """What seeds of a run have in common."""
    others = tuple(f"{key}." for key in NO_AXIS)
    return {key: value for key, value in run.flat.items() if not f"{key}.".startswith(others)}


def surroundings(before: Run, again: Run) -> list[str]:
    """In what the two were made differently: packages, Python, processor, threads, source."""
    changed = []
    for key in ("source", "python", "processor", "gpus", "threads", "kernel"):
        old, new = before.attempt.get(key), again.attempt.get(key)
        if old != new:
            changed.append(f"{key} {old} -> {new}")
    packages = [packages_of_run(run.path) for run in (before, again)]
    if all(packages):
        for name in sorted(packages[0].keys() | packages[1].keys()):
            old, new = (known.get(name, "absent") for known in packages)
            if old != new:
                changed.append(f"{name} {old} -> {new}")
    return changed
