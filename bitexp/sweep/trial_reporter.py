"""Inside a job: reports its validations to the study that it is a trial of, and hears whether to go on."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from bitexp.common.errors import UserError
from bitexp.common.secrets import holds_secret
from bitexp.sweep.storage import STORAGE, Store

STUDY = "BITEXP_STUDY"
"""The environment variable in which a sweeper names the study of its jobs."""


@dataclass(frozen=True)
class StudyOfJobs:
    """What a job has to know of its study; a job's number is its trial's."""

    name: str
    storage: str
    objective: str
    pruner: dict[str, Any] | None

    def to_text(self) -> str:
        """For the words of the jobs: letters and digits, since Hydra's grammar is in between.

        A storage with a password is left out of what anybody may read: jobs inherit `BITEXP_STORAGE`.
        """
        return (
            base64.urlsafe_b64encode(
                json.dumps(
                    {**asdict(self), "storage": None if holds_secret(self.storage) else self.storage}
                ).encode()
            )
            .decode()
            .rstrip("=")
        )

    @staticmethod
    def from_text(text: str) -> StudyOfJobs:
        """Back from `to_text`."""
        values = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        if values["storage"] is None:
            values["storage"] = os.environ.get(STORAGE, "")
        return StudyOfJobs(**values)


class TrialReporter:
    """Called with the objective and how far the run is; True ends the run, as Optuna's pruner says.

    A study that cannot be reached ends no run: this is announced once, and the run goes on to its end.
    """

    PATIENCE = 60.0  # seconds that a database may be away before a run goes on without it

    def __init__(self, study: StudyOfJobs, number: int, say: Callable[[str], None]) -> None:
        self.metric = study.objective
        self._study, self._number, self._say = study, number, say
        self._prunes = study.pruner is not None
        self._reported: set[int] = set()
        self._unreachable = False
        self._trial: Any = None
        self._store: Any = None

    def __call__(self, value: float, permille: int) -> bool:
        """
        Args:
            value: of the objective; permille: the share of the run that is done, in thousandths, which are
                the steps of a trial for Optuna: a pruner's `n_warmup_steps: 250` is a quarter of any run.
        """
        if self._unreachable or permille in self._reported:
            return False
        self._reported.add(permille)
        try:
            if self._store is None:
                self._open()
            return bool(self._store.patiently(lambda: self._ask(value, permille), self.PATIENCE))
        except Exception as error:  # a database may fail in nearly any way
            self._unreachable = True
            self._say(f"the study {self._study.name} cannot be reached, so nothing is pruned: {error}")
            return False

    def close(self) -> None:
        """Ends the connections to the study."""
        if self._store is not None:
            self._store.close()

    def _open(self) -> None:
        if not self._study.storage:
            raise UserError(f"this process has not inherited {STORAGE}")
        from bitexp.sweep.study import trial_of

        self._store = Store(self._study.storage)
        self._trial = trial_of(self._store.storage, self._study.name, self._number, self._study.pruner)

    def _ask(self, value: float, permille: int) -> bool:
        from bitexp.sweep.optuna_private import reported

        if permille not in reported(self._trial):
            self._trial.report(value, permille)
        return self._prunes and self._trial.should_prune()


def reporter_of(number: int, say: Callable[[str], None]) -> TrialReporter | None:
    """The reporter of the job of that number; None where it is no trial, or of several objectives."""
    if STUDY not in os.environ:
        return None
    study = StudyOfJobs.from_text(os.environ[STUDY])
    return TrialReporter(study, number, say) if study.objective else None
