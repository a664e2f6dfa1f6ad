"""What was varied: the keys in which the runs of an experiment differ, by the part they play."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bitexp.report.runs import Run
from bitexp.track.folder import UNIMPORTANT

DATA = "data fingerprint"
"""Stands beside the keys of the config: the same config on other data is another comparison."""

HYPERPARAMETERS = ("optimizer.", "scheduler.")
VARIANT = ("quantizer.", "packing", "kernel.", "start.", "distill.", "calibrate.")
IDENTITY = ".identity"


@dataclass(frozen=True)
class Axes:
    """The keys that runs differ in, but for precision and seed.

    setting: network, task, data, budget; only runs that agree in all of them are compared.
    variant: of the quantizer, what multiplies its codes, what was started from and learned from; a row for
        each.
    hyperparameters: optimizer and schedule; a row shows the best of them.
    """

    setting: tuple[str, ...]
    variant: tuple[str, ...]
    hyperparameters: tuple[str, ...]


def value(run: Run, key: str) -> Any:
    """A run's value of an axis; None where its config lacks the key.

    What came from another run of the experiment is said by how that differs, which every seed has of its own.
    """
    if key.endswith(IDENTITY) and f"{key.removesuffix(IDENTITY)}.run" not in run.flat:
        return None
    return run.data if key == DATA else run.flat.get(key)


def values(run: Run, keys: Iterable[str]) -> tuple[Any, ...]:
    """A run's values of some axes."""
    return tuple(value(run, key) for key in keys)


def find_axes(runs: Sequence[Run]) -> Axes:
    """The axes of one experiment's runs.

    A key that follows from the precision is none: the learning rate that was tuned for each, say. Data and
    budget never follow from the precision, so that no comparison hides that they differ with it.
    """
    typed = {word.lstrip("+~").partition("=")[0]: None for run in runs for word in run.overrides}
    varying = candidates(runs, typed)

    def axes(keys: list[str], known: Callable[[Run], tuple[Any, ...]]) -> tuple[str, ...]:
        chosen: list[str] = []
        for key in keys:
            # what was typed beside another key is an axis, even where no value of that occurs twice
            beside = [] if key in typed else chosen
            if not follows(runs, key, [(*known(run), *values(run, beside)) for run in runs]):
                chosen.append(key)
        return tuple(chosen)

    setting = axes(
        [key for key in varying if not key.startswith((*HYPERPARAMETERS, *VARIANT))], lambda run: ()
    )
    variant = axes(
        [key for key in varying if key.startswith(VARIANT)],
        lambda run: (run.precision, *values(run, setting)),
    )
    hyperparameters = axes(
        [key for key in varying if key.startswith(HYPERPARAMETERS)],
        lambda run: (run.precision, *values(run, (*setting, *variant))),
    )
    return Axes(setting, variant, hyperparameters)


def candidates(runs: Sequence[Run], typed: Iterable[str]) -> list[str]:
    """Every key whose value differs between runs, those that were typed first."""
    keys = dict.fromkeys([DATA, *typed, *(key for run in runs for key in run.flat)])
    unimportant = [word for word in UNIMPORTANT if not word.endswith(".run")]
    own = ("seed", "quantizer.name", "quantizer.exclude", "model.full_precision", *unimportant)
    return [
        key
        for key in keys
        if key not in own
        and not key.startswith(tuple(f"{word}." for word in unimportant))
        and len({(type(value(run, key)), value(run, key)) for run in runs}) > 1
    ]


def follows(runs: Sequence[Run], key: str, known: Sequence[tuple[Any, ...]]) -> bool:
    """Whether a key has one value wherever what is known of the runs is the same."""
    first: dict[tuple[Any, ...], Any] = {}
    pairs = zip(known, runs, strict=True)
    return all(first.setdefault(base, value(run, key)) == value(run, key) for base, run in pairs)
