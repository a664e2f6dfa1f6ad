"""What Optuna knows: studies in journal files, and how much each key that was varied matters."""

from __future__ import annotations

import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitexp.common.files import read_bytes
from bitexp.report.columns import cell_text
from bitexp.report.compare import Comparison
from bitexp.report.runs import Problem

LARGEST_JOURNAL = 2**28
"""Bytes of a study's journal beyond which it is not read."""
ENOUGH = 20
"""Trials below which no importance is computed: it compares the best tenth with the rest."""


@dataclass(frozen=True)
class JournalStudy:
    """A study in numbers: trials by state, the best one, and the importance of each parameter."""

    path: Path
    name: str
    states: dict[str, int]
    best: dict[str, str] = field(default_factory=dict)
    value: float | None = None
    importance: dict[str, float] = field(default_factory=dict)


def read_studies(paths: Iterable[Path]) -> tuple[list[JournalStudy], list[Problem]]:
    """Every study in `*.journal` files at or below the paths; what cannot be read is a problem."""
    by_file: dict[Path, list[JournalStudy]] = {}
    problems = []
    for path in paths:
        for file in journals(path):
            try:
                read_bytes(file, LARGEST_JOURNAL)
                by_file.setdefault(file.resolve(), load(file))
            except Exception as error:  # whatever a damaged journal can make its reader raise
                problems.append(Problem(file, f"this study cannot be read: {error or type(error).__name__}"))
    return [study for studies in by_file.values() for study in studies], problems


def journals(path: Path) -> Iterator[Path]:
    """Journal files at or below a path, or beside a single run or index."""
    for folder, inside, files in os.walk(path):
        inside[:] = sorted(n for n in inside if n not in ("checkpoints", "wandb") and not n.startswith("."))
        yield from (Path(folder) / name for name in sorted(files) if name.endswith(".journal"))


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna says what it does, and warns of what is experimental; a report says neither."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)


def load(file: Path) -> list[JournalStudy]:
    """The studies of a journal; the file is opened for reading alone."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    with quiet():
        storage = JournalStorage(JournalFileBackend(str(file)))
        names = optuna.get_all_study_names(storage)
        return [summary(file, optuna.load_study(study_name=name, storage=storage)) for name in names]


def summary(file: Path, study: Any) -> JournalStudy:
    """One study in numbers; one with several objectives has no single best trial."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    states = Counter(trial.state.name.lower() for trial in trials)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if len(study.directions) != 1 or not complete:
        return JournalStudy(file, study.study_name, dict(states))
    best = {key: cell_text(value) for key, value in study.best_trial.params.items()}
    return JournalStudy(file, study.study_name, dict(states), best, study.best_value, importance(study))


def importance(study: Any) -> dict[str, float]:
    """Importance by PED-ANOVA (arXiv 2304.10255), largest first; empty where trials are few or all alike."""
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.trial import TrialState

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < ENOUGH or len({tuple(trial.values) for trial in complete}) < 2:
        return {}
    with quiet():
        try:
            shares = optuna.importance.get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
        except (ValueError, RuntimeError):  # parameters that trials do not share, or a single value
            return {}
    return {name: float(share) for name, share in shares.items() if share == share}


def grid_importance(comparison: Comparison) -> dict[str, float]:
    """The same for what a comparison varied: precision, network, setting; each run is a trial."""
    import optuna

    axes = comparison.axes
    keys = ("precision", *axes.setting, *axes.variant, *axes.hyperparameters)
    settings = [
        dict(zip(keys, (c.precision, *c.setting, *c.variant, *c.hyperparameters), strict=True))
        for c in comparison.cells
    ]
    varied = [key for key in keys if len({cell_text(setting[key]) for setting in settings}) > 1]
    kinds = {key: kind([setting[key] for setting in settings]) for key in varied}
    if len(settings) < ENOUGH or len(kinds) < 2:
        return {}
    with quiet():
        study = optuna.create_study(direction="maximize" if comparison.sign > 0 else "minimize")
        for setting, cell in zip(settings, comparison.cells, strict=True):
            params = {key: as_parameter(setting[key], kinds[key]) for key in kinds}
            trial = optuna.trial.create_trial(params=params, distributions=kinds, value=cell.chosen_by)
            study.add_trial(trial)
    return importance(study)


def kind(values: Sequence[Any]) -> Any:
    """The distribution of an axis: of numbers, logarithmic where they span decades, or of words."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        low, high = min(values), max(values)
        return FloatDistribution(low, high, log=low > 0 and high / low > 20)
    return CategoricalDistribution(sorted({cell_text(value) for value in values}))


def as_parameter(value: Any, distribution: Any) -> Any:
    """A value as its distribution has it."""
    return cell_text(value) if hasattr(distribution, "choices") else float(value)
