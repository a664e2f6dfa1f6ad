"""All that bitexp uses of Optuna's private API. Written for Optuna 5.0.0.

Trials have numbers in public and ids in their storage; user attributes of a trial that another process asked
for, and trials that a job reports to, can be reached by id alone.
"""

from __future__ import annotations

from typing import Any

import optuna
from optuna.trial import FrozenTrial

from bitexp.common.secrets import redacted


def all_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Every trial of the storage, since Hyperband shows a sampler the trials of one bracket only."""
    return study._storage.get_all_trials(study._study_id, deepcopy=False)


def trial_of(study: optuna.Study, frozen: FrozenTrial) -> optuna.Trial:
    """A trial to draw for and to report to, whichever process asked for it."""
    return optuna.Trial(study, frozen._trial_id)


def set_attribute(study: optuna.Study, frozen: FrozenTrial, key: str, value: Any) -> None:
    """Sets a user attribute of a trial, without secrets, whichever process asked for it."""
    study._storage.set_trial_user_attr(frozen._trial_id, key, redacted(value))


def reported(trial: optuna.Trial) -> dict[int, float]:
    """The values that were reported for a trial, by step."""
    return trial.storage.get_trial(trial._trial_id).intermediate_values


def pin(sampler: optuna.samplers.QMCSampler, number: int) -> None:
    """Makes a sampler draw that point of its sequence, and not the one after the last that was drawn."""
    sampler._find_sample_id = lambda *_: number  # type: ignore[method-assign]
