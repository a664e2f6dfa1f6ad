"""Works a study off: asks for trials, has their runs made, tells how they ended; one thread or several."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState

from bitexp.sweep.live_view import Board
from bitexp.sweep.processes import STOPPING
from bitexp.sweep.study import Ending, Mine, Study

POLL = 2.0  # seconds between looks at trials of other workers, when there is nothing else to do

Launch = Callable[[Mine], Ending]
"""Makes the run of a trial. Raises KeyboardInterrupt where the user stops it."""


@dataclass
class Conductor:
    """The workers of this process on one study."""

    study: Study
    launch: Launch
    board: Board

    def __post_init__(self) -> None:
        self.stop = threading.Event()
        self.nothing_works: str | None = None
        self._problems: list[BaseException] = []

    def conduct(self, workers: int, halt: Callable[[], None]) -> None:
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
            self.board.say(STOPPING)
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
        told = False
        while not (self.stop.is_set() or self.study.given_up or self.nothing_works):
            trial = self.study.next()
            if trial is None:
                others = self.study.waiting()
                if not others:
                    return
                if not told:
                    numbers = ", ".join(str(other.number) for other in others)
                    self.board.say(f"The budget is given out; waiting for trials of others: {numbers}")
                    told = True
                self.stop.wait(POLL)
                continue
            if trial.taken_from is not None:
                self.board.say(f"Trial {trial.number} goes on: {trial.taken_from} works on it no more")
            self._make(trial)

    def _make(self, trial: Mine) -> None:
        what = described(trial.params)
        self.board.began(trial.number, what)
        try:
            ending = self._outside(self.launch(trial))
            while not self.stop.is_set() and self.study.again(trial, ending):
                self.board.say(f"Trial {trial.number} failed and is tried again: {ending.reason}")
                ending = self._outside(self.launch(trial))
        except BaseException:  # Ctrl-C, or the launcher itself
            self.study.release(trial.number)
            raise
        if ending.status == "stopped":
            self.study.release(trial.number)
            self.board.ended(trial.number, "stopped", ending.reason)
            return
        if self.study.tell(trial, ending):
            self.board.ended(trial.number, ending.status, ending.reason, ending.values)
        else:
            self.board.ended(trial.number, "left", "another worker has taken it over")
        if ending.kind == "config" and not any(t.state == TrialState.COMPLETE for t in self.study.trials()):
            self.nothing_works = ending.reason

    def _outside(self, ending: Ending) -> Ending:
        """A job that somebody else stopped, while the sweep goes on, has failed."""
        if ending.status == "stopped" and not self.stop.is_set():
            return Ending("failed", "died", f"stopped from outside by {ending.reason}", run=ending.run)
        return ending


def described(params: Mapping[str, Any]) -> str:
    """Drawn parameters for people: three digits of what is not whole."""
    short = {key: f"{v:.3g}" if isinstance(v, float) else str(v) for key, v in params.items()}
    return " ".join(f"{key}={value}" for key, value in short.items())
