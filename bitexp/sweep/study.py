"""A study that any number of processes work on: trials with an exact budget, taken over when a worker dies.

No Hydra in here. A worker asks for a trial (`Study.next`), makes its run and tells how it ended
(`Study.tell`). A trial of a worker that was killed stays the same trial: whoever finds it goes on with it,
and its run goes on from its last checkpoint.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from bitexp.common.errors import UserError
from bitexp.common.secrets import redacted
from bitexp.sweep import optuna_private
from bitexp.sweep.definition import Definition, Limits
from bitexp.sweep.ownership import OWNER, SEEN, Silences, gone, host, myself
from bitexp.sweep.samplers import RETRY_OF, PerCell, build_pruner, cells
from bitexp.sweep.storage import Store

optuna.logging.set_verbosity(optuna.logging.ERROR)

DEFINITION = "definition"
RETRIED = ("crash", "out_of_memory", "disk_full", "timeout", "died", "taken")
"""Kinds of failure that may go well another time; a diverged trial is an answer, a wrong config a mistake."""


@dataclass
class TrialResult:
    """How a trial's run ended.

    `status` is that of result.json (finished, pruned, failed, stopped), `kind` that of a failure;
    `values` are those of the objectives of a finished run.
    """

    status: str
    kind: str | None = None
    reason: str | None = None
    values: Sequence[float] = ()
    run: str | None = None


@dataclass
class ClaimedTrial:
    """A trial that this worker has: its number, parameters, and how often it was begun."""

    number: int
    params: dict[str, Any]
    begun: int
    taken_from: str | None = None
    reasons: list[str] = field(default_factory=list)


class Study:
    """One worker's view of a study (a worker may be several threads).

    Raises:
        UserError: a study of that name that was defined otherwise, or a wrong sampler or pruner.
    """

    def __init__(self, store: Store, name: str, definition: Definition, limits: Limits) -> None:
        self.store, self.name, self.definition, self.limits = store, name, definition, limits
        self.failures = 0
        self._claimed: set[int] = set()
        self._me = myself()
        self.silences = Silences()
        self.retried = store.patiently(self._open)
        self._beat = threading.Event()
        self._heart = threading.Thread(target=self._heartbeat, daemon=True)
        self._heart.start()

    def _open(self) -> int:
        with self.store.exclusive(self.name):
            self.study = optuna.create_study(
                study_name=self.name,
                storage=self.store.storage,
                sampler=PerCell(self.definition.sampler, self.definition.space),
                pruner=build_pruner(self.definition.pruner),
                directions=list(self.definition.directions),
                load_if_exists=True,
            )
            self._same_definition()
            return self._retry_failed()

    def close(self) -> None:
        """Ends the signs of life and the connections; trials that were begun here may be taken over."""
        self._beat.set()
        self._heart.join(5.0)  # it may be waiting for a database
        for number in sorted(self._claimed):
            self.release(number)
        self.store.close()

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return self.study.get_trials(deepcopy=False)

    def next(self) -> ClaimedTrial | None:
        """The next trial to work on: one whose worker died, else a retry, else a new one within the budget.

        None when nothing is to be begun (now): see `waiting`.
        """
        return self.store.patiently(self._next)

    def _next(self) -> ClaimedTrial | None:
        with self.store.exclusive(self.name):
            trials = self.trials()
            for trial in trials:
                if trial.state == TrialState.RUNNING and self._abandoned(trial):
                    return self._take(trial.number)
            queued = any(trial.state == TrialState.WAITING for trial in trials)
            if not queued and len(cells(trials)) >= self.limits.n_trials:
                return None
            return self._take(self.study.ask(dict(self.definition.space)).number)

    def _take(self, number: int) -> ClaimedTrial:
        frozen = self.trials()[number]
        before = host(frozen.user_attrs) if frozen.user_attrs.get(OWNER) else None
        params = dict(frozen.params)
        if params.keys() != self.definition.space.keys():  # its worker was killed while it asked
            trial = optuna_private.trial_of(self.study, frozen)
            for key, distribution in self.definition.space.items():
                suggest(trial, key, distribution)
            params = dict(trial.params)
        begun = int(frozen.user_attrs.get("begun", 0)) + 1
        # the count last: where a database goes away in between, this trial is taken and counted anew
        for key, value in {SEEN: time.time(), OWNER: self._me, "begun": begun}.items():
            optuna_private.set_attribute(self.study, frozen, key, value)
        self._claimed.add(number)
        return ClaimedTrial(number, params, begun, before)

    def _abandoned(self, trial: FrozenTrial) -> bool:
        if trial.user_attrs.get(OWNER) == self._me:
            return trial.number not in self._claimed
        silence = self.silences(trial.number, [trial.user_attrs.get(key) for key in (OWNER, SEEN)])
        return gone(trial.user_attrs, silence, self.limits.lost_after)

    def waiting(self) -> list[FrozenTrial]:
        """Trials that other processes are working on, which may yet be left behind."""
        running = [t for t in self.store.patiently(self.trials) if t.state == TrialState.RUNNING]
        return [trial for trial in running if trial.number not in self._claimed]

    def tell(self, trial: ClaimedTrial, result: TrialResult) -> bool:
        """Records how a trial ended. False where another worker has taken it over meanwhile."""
        return self.store.patiently(lambda: self._tell(trial, result))

    def _tell(self, trial: ClaimedTrial, result: TrialResult) -> bool:
        bad = [value for value in result.values if math.isnan(value)]
        if result.status == "finished" and bad:
            result = TrialResult("failed", "diverged", "an objective is nan", run=result.run)
        with self.store.exclusive(self.name):
            frozen = self.trials()[trial.number]
            if not self._holds(frozen):
                self._claimed.discard(trial.number)
                return frozen.user_attrs.get(OWNER) == self._me  # told before, and the answer was lost
            for key in ("status", "kind", "reason", "run"):
                if (value := getattr(result, key)) is not None:
                    optuna_private.set_attribute(self.study, frozen, key, value)
            if trial.reasons:
                optuna_private.set_attribute(self.study, frozen, "earlier_failures", trial.reasons)
            if result.status == "finished":
                self.study.tell(trial.number, list(result.values))
            elif result.status == "pruned":
                self.study.tell(trial.number, state=TrialState.PRUNED)
            else:
                self.study.tell(trial.number, state=TrialState.FAIL)
                self.failures += result.kind != "diverged"
            self._claimed.discard(trial.number)
        return True

    def release(self, number: int) -> None:
        """Leaves a trial to whoever comes next, its run to be continued."""

        self._claimed.discard(number)
        self.store.patiently(lambda: self._mark(number, OWNER, ""), patience=5.0)

    def again(self, trial: ClaimedTrial, result: TrialResult) -> bool:
        """Whether a failed trial is to be tried once more right away."""
        if result.status != "failed" or result.kind not in RETRIED or result.kind == "timeout":
            return False
        trial.reasons.append(str(result.reason))
        return len(trial.reasons) <= self.limits.retries

    @property
    def given_up(self) -> bool:
        """Whether more trials have failed here than may."""
        return self.failures > self.limits.max_failures

    def _same_definition(self) -> None:
        now = self.definition.to_json()
        stored = self.study.user_attrs.get(DEFINITION)
        if stored is None:
            self.study.set_user_attr(DEFINITION, now)
            return
        others = [key for key in now if redacted(stored.get(key)) != now[key]]
        if others:
            definition = "; ".join(f"{key}: {redacted(stored.get(key))}" for key in others)
            raise UserError(
                f"the study '{self.name}' was started with a different definition ({definition}). The same "
                "command continues it; another hydra.sweeper.study=NAME starts a new one"
            )

    def _retry_failed(self) -> int:
        """Queues what failed for a reason that may be gone, once for every start."""
        trials = self.trials()
        repeated = {trial.user_attrs.get(RETRY_OF) for trial in trials}
        failed = [
            trial
            for trial in trials
            if trial.state == TrialState.FAIL
            and trial.user_attrs.get("kind") in RETRIED
            and trial.number not in repeated
        ]
        for trial in failed:
            self.study.enqueue_trial(trial.params, user_attrs={RETRY_OF: trial.number})
        return len(failed)

    def _heartbeat(self) -> None:
        while not self._beat.wait(self.limits.heartbeat):
            for number in list(self._claimed):
                self.store.patiently(partial(self._sign, number))

    def _sign(self, number: int) -> None:
        self._mark(number, SEEN, time.time())

    def _mark(self, number: int, key: str, value: Any) -> None:
        """Sets a user attribute of a trial, as long as it is ours."""
        with self.store.exclusive(self.name):
            frozen = self.trials()[number]
            if self._holds(frozen):
                optuna_private.set_attribute(self.study, frozen, key, value)

    def _holds(self, trial: FrozenTrial) -> bool:
        return trial.state == TrialState.RUNNING and trial.user_attrs.get(OWNER) == self._me


def suggest(trial: optuna.Trial, key: str, distribution: BaseDistribution) -> None:
    """Draws one parameter, or finds it drawn."""
    if isinstance(distribution, CategoricalDistribution):
        trial.suggest_categorical(key, distribution.choices)
    elif isinstance(distribution, IntDistribution):
        d = distribution
        trial.suggest_int(key, d.low, d.high, step=d.step, log=d.log)
    elif isinstance(distribution, FloatDistribution):
        f = distribution
        trial.suggest_float(key, f.low, f.high, step=f.step, log=f.log)


def trial_of(storage: Any, name: str, number: int, pruner: Mapping[str, Any] | None) -> optuna.Trial:
    """A trial as the job sees it that makes its run: to report to, and to ask whether to go on."""
    sampler = optuna.samplers.RandomSampler(seed=os.getpid())  # draws nothing: all is drawn already
    study = optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=build_pruner(pruner))
    return optuna_private.trial_of(study, study.get_trials(deepcopy=False)[number])
