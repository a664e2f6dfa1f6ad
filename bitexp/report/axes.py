"""What was varied: the keys in which the runs of an experiment differ, by the part they play."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bitexp.report.runs import Run
from bitexp.track.folder import UNIMPORTANT

DATA = "data fingerprint"
"""Stands beside the keys of the config: the same config on other data is another comparison."""

HYPERPARAMETERS = ("optimizer.", "scheduler.")
VARIANT = ("quantizer.", "packing", "kernel.", "start.", "distill.", "calibrate.")
IDENTITY = ".identity"
NO_AXES = ("seed", "quantizer", "quantizer.name", "model.full_precision", "sweeps")
"""Precision and seed stand beside all axes, and what a network keeps in full precision is what its quantizer
excludes; a sweep is typed for many runs, and says of none what it is."""

Known = Sequence[tuple[Any, ...]]
"""For each run what is told of it already."""


@dataclass(frozen=True)
class Axes:
    """What runs differ in, but for precision and seed: keys, and choices that stand for several keys.

    setting: network, task, data, budget; only runs that agree in all of them are compared.
    variant: of the quantizer, what multiplies its codes, what was started from and learned from; a row for
        each.
    hyperparameters: optimizer and schedule; a row shows the best of them.
    choices: the axes that were typed as a word, as `model` or `recipe`, with the keys that differ with each.
    """

    setting: tuple[str, ...]
    variant: tuple[str, ...]
    hyperparameters: tuple[str, ...]
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def value(run: Run, key: str) -> Any:
    """A run's value of an axis: a key of its config, or the word of a choice; None where it has neither.

    Where a choice was not typed, the name in its section stands for it. What came from another run of the
    experiment is said by how that differs, which every seed has of its own.
    """
    if key.endswith(IDENTITY) and f"{key.removesuffix(IDENTITY)}.run" not in run.flat:
        return None
    if key == DATA:
        return run.data
    return run.flat[key] if key in run.flat else run.typed.get(key) or run.flat.get(f"{key}.name")


def values(run: Run, keys: Iterable[str]) -> tuple[Any, ...]:
    """A run's values of some axes."""
    return tuple(value(run, key) for key in keys)


def find_axes(runs: Sequence[Run]) -> Axes:
    """The axes of one experiment's runs.

    A key that follows from the precision is none: the learning rate that was tuned for each, say. Data and
    budget never follow from the precision, so that no comparison hides that they differ with it. A typed
    choice stands for the keys that differ with it alone; a recipe, which is no section of the config, has a
    row of its own also where it is the optimizer's.
    """
    search = Search(runs)
    of_part = {
        part: [key for key in search.varying if key.startswith(part)] for part in (HYPERPARAMETERS, VARIANT)
    }
    rest = [key for key in search.varying if not key.startswith((*HYPERPARAMETERS, *VARIANT))]
    setting = search.axes(rest, [() for _ in runs])
    known = [(run.precision, *values(run, setting)) for run in runs]
    variant = search.axes(of_part[VARIANT], known, of_part[HYPERPARAMETERS])
    known = [(*told, *values(run, variant)) for told, run in zip(known, runs, strict=True)]
    hyperparameters = search.axes(of_part[HYPERPARAMETERS], known)
    return Axes(setting, variant, hyperparameters, search.choices)


class Search:
    """The search for axes among the keys that vary, each part with what the parts before it have told."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self.typed = dict.fromkeys(key for run in runs for key in run.typed)
        self.keys = dict.fromkeys(key for run in runs for key in run.flat)
        self.varying = self._varying()
        words = [key for key in self.typed if key not in self.keys and key not in NO_AXES]
        self.recipes = [word for word in words if not self.inside(word, self.keys)]
        self.sections = [word for word in words if word not in self.recipes]
        self.choices: dict[str, tuple[str, ...]] = {}

    def _varying(self) -> list[str]:
        """Every key whose value differs between runs, those that were typed first."""
        less = [word for word in UNIMPORTANT if not word.endswith(".run")]
        unimportant, sections = (*NO_AXES, *less), tuple(f"{key}." for key in less)
        return [
            key
            for key in {DATA: None, **self.typed, **self.keys}
            if (key in self.keys or key == DATA)
            and key not in unimportant
            and not key.startswith(sections)
            and len({(type(value(run, key)), value(run, key)) for run in self.runs}) > 1
        ]

    def inside(self, section: str, keys: Iterable[str]) -> list[str]:
        """Those of some keys that belong to a section."""
        return [key for key in keys if key.startswith(f"{section}.") or (section, key) == ("data", DATA)]

    def axes(self, keys: Sequence[str], known: Known, of_recipes: Sequence[str] = ()) -> tuple[str, ...]:
        """The axes among some keys; recipes may stand for further ones, too."""
        chosen = [
            *(word for word in self.sections if self.stands_for(word, self.inside(word, keys), known)),
            *(word for word in self.recipes if self.stands_for(word, [*keys, *of_recipes], known)),
        ]
        for key in self.untold(keys):
            # what was typed beside another key is an axis, even where no value of that occurs twice
            beside = known if key in self.typed else self.with_values(known, chosen)
            if not follows(self.runs, key, beside):
                chosen.append(key)
        return tuple(chosen)

    def stands_for(self, word: str, keys: Sequence[str], known: Known) -> bool:
        """Whether a choice and the keys that differ with it say the same; then these are told by it."""
        beside = self.with_values(known, [word])
        told = [
            key
            for key in self.untold(keys)
            if key not in self.typed
            and follows(self.runs, key, beside)
            and not follows(self.runs, key, known)
        ]
        if not told or not follows(self.runs, word, self.with_values(known, told)):
            return False
        self.choices[word] = tuple(told)
        return True

    def untold(self, keys: Sequence[str]) -> list[str]:
        """Those of some keys that no choice stands for."""
        told = {key for keys in self.choices.values() for key in keys}
        return [key for key in keys if key not in told]

    def with_values(self, known: Known, keys: Sequence[str]) -> Known:
        """What is known of the runs, with their values of further axes."""
        return [(*told, *values(run, keys)) for told, run in zip(known, self.runs, strict=True)]


def follows(runs: Sequence[Run], key: str, known: Known) -> bool:
    """Whether a key has one value wherever what is known of the runs is the same."""
    first: dict[tuple[Any, ...], Any] = {}
    pairs = zip(known, runs, strict=True)
    return all(first.setdefault(base, value(run, key)) == value(run, key) for base, run in pairs)


def independent(runs: Sequence[Run], keys: Iterable[str]) -> list[str]:
    """Those of some keys that do not follow from the ones before them."""
    chosen: list[str] = []
    for key in keys:
        if not follows(runs, key, [values(run, chosen) for run in runs]):
            chosen.append(key)
    return chosen
