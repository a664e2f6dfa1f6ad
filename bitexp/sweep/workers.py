"""Works a study off: asks for trials, has their runs made, tells how they ended; one thread or several."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState

from bitexp.common.format import value_text
from bitexp.sweep.live_view import LiveView
from bitexp.sweep.processes import STOPPING
from bitexp.sweep.study import ClaimedTrial, Study, TrialResult

POLL = 2.0  # seconds between looks at trials of other workers, when there is nothing else to do

Launch = Callable[[ClaimedTrial], TrialResult]
"""Makes the run of a trial. Raises KeyboardInterrupt where the user stops it."""


@dataclass
class Workers:
    """The workers of this process on one study."""

    study: Study
    launch: Launch
    view: LiveView

    def __post_init__(self) -> None:
        self.stop = threading.Event()
        self.nothing_works: str | None = None
        self._problems: list[BaseException] = []

    def run(self, workers: int, halt: Callable[[], None]) -> None:
        """Returns when the budget is spent, too much has failed, or nothing works at all.

        Args:
            workers: threads; a single one is this thread, where a run may catch signals itself.
            halt: asks the jobs that are under way to stop, on Ctrl-C.

        Raises:
            KeyboardInterrupt: after all jobs have stopped and their trials were given back.
        """
        if workers == 1:
            return self._work()
        # events, since a join() that Ctrl-C breaks off cannot be repeated
        ends = [threading.Event() for _ in range(workers)]
        for end in ends:
            threading.Thread(target=self._guarded, args=(end,), daemon=True).start()
        try:
            for end in ends:
                end.wait()
        except KeyboardInterrupt:
            self.stop.set()
            self.view.line(STOPPING)
            halt()
            try:
                for end in ends:
                    end.wait()
            except KeyboardInterrupt:
                halt()
                for end in ends:
                    end.wait(10)
            raise
        if self._problems:
            raise self._problems[0]

    def _guarded(self, end: threading.Event) -> None:
        try:
            self._work()
        except BaseException as problem:
            self._problems.append(problem)
            self.stop.set()
        finally:
            end.set()

    def _work(self) -> None:
        announced = False
        while not (self.stop.is_set() or self.study.given_up or self.nothing_works):
            trial = self.study.next()
            if trial is None:
                others = self.study.waiting()
                if not others:
                    return
                if not announced:
                    numbers = ", ".join(str(other.number) for other in others)
                    self.view.line(f"All trials are assigned; waiting for trials {numbers} of other workers")
                    announced = True
                self.stop.wait(POLL)
                continue
            if trial.taken_from is not None:
                self.view.line(f"Resuming trial {trial.number}: its worker {trial.taken_from} is gone")
            self._make(trial)

    def _make(self, trial: ClaimedTrial) -> None:
        what = described(trial.params)
        self.view.began(trial.number, what)
        try:
            result = self._outside(self.launch(trial))
            while not self.stop.is_set() and self.study.again(trial, result):
                self.view.line(f"Retrying trial {trial.number}, which failed: {result.reason}")
                result = self._outside(self.launch(trial))
        except BaseException:  # Ctrl-C, or the launcher itself
            self.study.release(trial.number)
            raise
        if result.status == "stopped":
            self.study.release(trial.number)
            self.view.ended(trial.number, "stopped", result.reason)
            return
        if self.study.tell(trial, result):
            self.view.ended(trial.number, result.status, result.reason, result.values)
        else:
            self.view.ended(trial.number, "left", "another worker has taken it over")
        if result.kind == "config" and not any(t.state == TrialState.COMPLETE for t in self.study.trials()):
            self.nothing_works = result.reason

    def _outside(self, result: TrialResult) -> TrialResult:
        """A job that somebody else stopped, while the sweep goes on, has failed."""
        if result.status == "stopped" and not self.stop.is_set():
            return TrialResult("failed", "died", f"stopped from outside by {result.reason}", run=result.run)
        return result


def described(params: Mapping[str, Any]) -> str:
    """Drawn parameters for people: three digits of what is not whole."""
    return " ".join(f"{key}={value_text(value, 3)}" for key, value in params.items())
