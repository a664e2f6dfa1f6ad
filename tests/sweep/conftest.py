"""Studies whose trials are cheap: a launch function stands for the run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from bitexp.common.console import Report
from bitexp.sweep import workers as conduct
from bitexp.sweep.live_view import LiveView
from bitexp.sweep.storage import Store
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


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for others are short, and nothing waits for the disk: no test cuts the power."""
    monkeypatch.setattr(conduct, "POLL", 0.05)
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture(scope="session")
def define() -> Callable[..., Definition]:
    """The definition of a study over one of `SPACES`; a sampler by its name has seed 0."""

    def make(
        sampler: str | Mapping[str, Any] = "RandomSampler",
        space: str | Mapping[str, Any] = "open",
        directions: Any = ("maximize",),
        **changes: Any,
    ) -> Definition:
        parts: dict[str, Any] = {
            "fixed": ["seed=0"],
            "space": SPACES[space] if isinstance(space, str) else space,
            "objectives": ["val/accuracy", "size/total_bytes", "val/loss"][: len(directions)],
            "directions": directions,
            "sampler": {"name": sampler, "seed": 0} if isinstance(sampler, str) else sampler,
            "pruner": None,
        }
        return Definition(**parts | changes)

    return make


@pytest.fixture(scope="session")
def opened(define: Any) -> Callable[..., Study]:
    """A worker's view of the study at a place."""

    def make(
        place: Any,
        n_trials: int = 6,
        definition: Definition | None = None,
        name: str = "study",
        **limits: Any,
    ) -> Study:
        return Study(Store(str(place)), name, definition or define(), Limits(n_trials, **limits))

    return make


def score(trial: ClaimedTrial) -> TrialResult:
    """A run that ends well, its value of its parameters alone."""
    numbers = [float(v) if isinstance(v, int | float) else len(str(v)) for v in trial.params.values()]
    return TrialResult("finished", values=[sum(numbers)], run=f"runs/{trial.number}")


@pytest.fixture(scope="session")
def work_off(opened: Any) -> Callable[..., list[FrozenTrial]]:
    """Works the study at a place off and returns its trials."""

    def work(
        place: Any,
        n_trials: int = 6,
        launch: Callable[[ClaimedTrial], TrialResult] = score,
        workers: int = 1,
        report: Report | None = None,
        halt: Callable[[], None] = lambda: None,
        **further: Any,
    ) -> list[FrozenTrial]:
        study = opened(place, n_trials, **further)
        view = LiveView(report or Report(quiet=True), n_trials, workers, "max")
        try:
            Workers(study, launch, view).run(workers, halt)
            return list(study.trials())
        finally:
            study.close()

    return work


@pytest.fixture(scope="session")
def draws() -> Callable[[list[FrozenTrial]], list[dict[str, Any]]]:
    """What was drawn for each trial, by number."""
    return lambda trials: [trial.params for trial in trials]


@pytest.fixture
def until() -> Callable[..., None]:
    """Waits until something holds."""

    def wait(holds: Callable[[], Any], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, "it never came"
            time.sleep(0.01)

    return wait


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Where a journal may be."""
    return tmp_path / "studies" / "study.journal"


@pytest.fixture(scope="session")
def load() -> Callable[[Path], list[FrozenTrial]]:
    """The trials of the one study in a journal."""
    from bitexp.sweep.storage import open_journal

    def read(path: Path) -> list[FrozenTrial]:
        storage = open_journal(path)
        (summary,) = optuna.get_all_study_summaries(storage)
        return optuna.load_study(study_name=summary.study_name, storage=storage).trials

    return read
