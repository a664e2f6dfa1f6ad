"""Studies whose trials are cheap: a launch function stands for the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from bitexp.common.console import Report
from bitexp.sweep.live_view import LiveView
from bitexp.sweep.storage import Store, open_journal
from bitexp.sweep.study import ClaimedTrial, Definition, Limits, Study, TrialResult
from bitexp.sweep.workers import Workers

LR = FloatDistribution(1e-4, 1e-1, log=True)
SPACES = {
    "open": {"optimizer.lr": LR, "model.depth": IntDistribution(1, 9), "task.mixup": FloatDistribution(0, 1)},
    "finite": {
        "quantizer": CategoricalDistribution(["full", "binary", "ternary_mean"]),
        "model.depth": IntDistribution(2, 8, step=2),
    },
}
Launch = Callable[[ClaimedTrial], TrialResult]


class Define(Protocol):
    """The definition of a study over one of `SPACES`; a sampler by its name has seed 0."""

    def __call__(
        self,
        sampler: str | Mapping[str, Any] = ...,
        space: str | Mapping[str, Any] = ...,
        directions: Any = ...,
        **changes: Any,
    ) -> Definition: ...


class Opened(Protocol):
    """A worker's view of the study at a place."""

    def __call__(
        self,
        place: object,
        n_trials: int = ...,
        definition: Definition | None = ...,
        name: str = ...,
        **limits: Any,
    ) -> Study: ...


class WorkOff(Protocol):
    """Works the study at a place off and returns its trials; `further` goes to `Opened`."""

    def __call__(
        self,
        place: object,
        n_trials: int = ...,
        launch: Launch = ...,
        workers: int = ...,
        report: Report | None = ...,
        halt: Callable[[], None] = ...,
        **further: Any,
    ) -> list[FrozenTrial]: ...


class Until(Protocol):
    """Waits until something holds."""

    def __call__(self, holds: Callable[[], Any], seconds: float = ...) -> None: ...


Draws = Callable[[list[FrozenTrial]], list[dict[str, Any]]]
Load = Callable[[Path], list[FrozenTrial]]


def define(
    sampler: str | Mapping[str, Any] = "RandomSampler",
    space: str | Mapping[str, Any] = "open",
    directions: Any = ("maximize",),
    **changes: Any,
) -> Definition:
    """The definition of a study over one of `SPACES`; a sampler by its name has seed 0."""
    parts: dict[str, Any] = {
        "fixed": ["seed=0"],
        "space": SPACES[space] if isinstance(space, str) else space,
        "objectives": ["val/accuracy", "size/total_bytes", "val/loss"][: len(directions)],
        "directions": directions,
        "sampler": {"name": sampler, "seed": 0} if isinstance(sampler, str) else sampler,
        "pruner": None,
    }
    return Definition(**parts | changes)


def opened(
    place: object, n_trials: int = 6, definition: Definition | None = None, name: str = "study", **limits: Any
) -> Study:
    """A worker's view of the study at a place."""
    return Study(Store(str(place)), name, definition or define(), Limits(n_trials, **limits))


def finished(value: float = 1.0) -> TrialResult:
    """A run that ended well."""
    return TrialResult("finished", values=[value])


def failed(kind: str = "crash", reason: str = "RuntimeError: no") -> TrialResult:
    """A run that did not."""
    return TrialResult("failed", kind, reason)


class Recorder:
    """A launch function that ends the trials of some numbers in some other way."""

    def __init__(self, **others: Any) -> None:
        self.numbers: list[int] = []
        self.params: list[Any] = []
        self.others = {int(name.lstrip("_")): value for name, value in others.items()}

    def __call__(self, trial: ClaimedTrial) -> TrialResult:
        self.numbers.append(trial.number)
        self.params.append(trial.params)
        other = self.others.get(trial.number, finished())
        return other() if callable(other) else other


def score(trial: ClaimedTrial) -> TrialResult:
    """A run that ends well, its value of its parameters alone."""
    numbers = [float(v) if isinstance(v, int | float) else len(str(v)) for v in trial.params.values()]
    return TrialResult("finished", values=[sum(numbers)], run=f"runs/{trial.number}")


def work_off(
    place: object,
    n_trials: int = 6,
    launch: Launch = score,
    workers: int = 1,
    report: Report | None = None,
    halt: Callable[[], None] = lambda: None,
    **further: Any,
) -> list[FrozenTrial]:
    """Works the study at a place off and returns its trials."""
    study = opened(place, n_trials, **further)
    view = LiveView(report or Report(quiet=True), n_trials, workers, "max")
    try:
        Workers(study, launch, view).run(workers, halt)
        return list(study.trials())
    finally:
        study.close()


def draws(trials: list[FrozenTrial]) -> list[dict[str, Any]]:
    """What was drawn for each trial, by number."""
    return [trial.params for trial in trials]


def until(holds: Callable[[], Any], seconds: float = 60.0) -> None:
    """Waits until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def load(path: Path) -> list[FrozenTrial]:
    """The trials of the one study in a journal."""
    storage = open_journal(path)
    (summary,) = optuna.get_all_study_summaries(storage)
    return optuna.load_study(study_name=summary.study_name, storage=storage).trials
