"""Trials that fail are recorded, tried again or given back; Ctrl-C loses none."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from bitexp.sweep.ownership import OWNER
from bitexp.sweep.study import ClaimedTrial, TrialResult
from tests.support.studies import Recorder, failed, finished


@pytest.mark.parametrize("kind", ["crash", "out_of_memory", "disk_full", "died"])
def test_what_may_go_well_another_time_is_tried_again(kind: str, work_off: Any, journal: Path) -> None:
    endings = iter([failed(kind, "first"), failed(kind, "second"), finished()])
    trials = work_off(journal, 2, launch := Recorder(_0=lambda: next(endings)), retries=2)
    assert launch.numbers == [0, 0, 0, 1]
    assert launch.params[0] == launch.params[1] == launch.params[2]
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    assert trials[0].user_attrs["earlier_failures"] == ["first", "second"]


def test_a_failure_is_recorded_with_its_reason(work_off: Any, journal: Path) -> None:
    trials = work_off(journal, 2, launch := Recorder(_0=failed("crash", "ValueError: that")), retries=1)
    assert launch.numbers == [0, 0, 1]
    assert trials[0].state == TrialState.FAIL
    said = {key: trials[0].user_attrs[key] for key in ("status", "kind", "reason")}
    assert said == {"status": "failed", "kind": "crash", "reason": "ValueError: that"}


@pytest.mark.parametrize(
    "result",
    [failed("diverged", "the training loss is nan"), failed("timeout", "too long"), finished(float("nan"))],
)
def test_what_would_end_alike_is_not_tried_again_at_once(
    result: TrialResult, work_off: Any, journal: Path
) -> None:
    trials = work_off(journal, 2, launch := Recorder(_0=result), retries=3)
    assert launch.numbers == [0, 1]
    assert [trial.state for trial in trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert trials[0].user_attrs["reason"] == (result.reason or "an objective is nan")
    assert trials[0].user_attrs["kind"] == (result.kind or "diverged")


def test_an_infinite_value_is_a_value(work_off: Any, journal: Path) -> None:
    trials = work_off(journal, 2, Recorder(_0=finished(float("inf"))))
    assert trials[0].values == [float("inf")]


@pytest.mark.parametrize(
    ("kind", "limit", "made"), [("died", 0, 1), ("died", 2, 3), ("died", 9, 6), ("diverged", 0, 6)]
)
def test_the_sweep_stops_only_when_more_failed_than_may(
    kind: str, limit: int, made: int, work_off: Any, journal: Path
) -> None:
    launch = Recorder(**{f"_{n}": failed(kind) for n in range(6)})
    trials = work_off(journal, 6, launch, retries=0, max_failures=limit)
    assert len(trials) == made


def test_what_failed_is_tried_once_more_when_the_command_is_given_again(
    work_off: Any, journal: Path, opened: Any
) -> None:
    endings = {
        "_0": failed("died"), "_1": failed("diverged"), "_2": failed("timeout"), "_4": failed("config"),
    }  # fmt: skip
    first = work_off(journal, 5, Recorder(**endings), retries=0)
    for _ in range(2):  # two that start together queue each trial once
        (study := opened(journal, 5)).close()
    assert len(study.trials()) == 7
    again = work_off(journal, 5, launch := Recorder(_5=failed("died")), retries=0)
    assert launch.numbers == [5, 6]
    assert launch.params == [first[0].params, first[2].params]
    assert [trial.user_attrs.get("retry_of") for trial in again[5:]] == [0, 2]
    work_off(journal, 5, launch := Recorder(), retries=0)
    assert launch.numbers == [7]
    assert launch.params == [first[0].params]
    work_off(journal, 5, launch := Recorder(), retries=0)
    assert launch.numbers == []


def test_a_retry_spends_nothing_of_the_budget(work_off: Any, journal: Path, draws: Any) -> None:
    undisturbed = draws(work_off(journal.with_name("undisturbed"), 5))
    work_off(journal, 3, Recorder(_1=failed("died")), retries=0)
    trials = work_off(journal, 5, launch := Recorder())
    assert launch.numbers == [3, 4, 5]
    assert [trials[n].params for n in (0, 1, 2, 4, 5)] == undisturbed
    assert trials[3].params == undisturbed[1]


def test_a_mistake_in_the_config_ends_a_sweep_in_which_nothing_works(work_off: Any, journal: Path) -> None:
    wrong = failed("config", "model.dim=7 must be even")
    work_off(journal, 4, launch := Recorder(_0=wrong))
    assert launch.numbers == [0]
    work_off(journal.with_name("other"), 4, launch := Recorder(_1=wrong))
    assert launch.numbers == [0, 1, 2, 3]


def test_a_pruned_trial_is_told_as_such(work_off: Any, journal: Path) -> None:
    trials = work_off(journal, 2, Recorder(_0=TrialResult("pruned", reason="val/accuracy 0.1", run="runs/x")))
    assert trials[0].state == TrialState.PRUNED
    assert trials[0].user_attrs["run"] == "runs/x"


def test_a_job_that_somebody_stopped_has_died(work_off: Any, journal: Path) -> None:
    stopped = TrialResult("stopped", "signal", "SIGTERM")
    trials = work_off(journal, 2, launch := Recorder(_0=stopped), retries=1)
    assert launch.numbers == [0, 0, 1]
    assert trials[0].user_attrs["kind"] == "died"
    assert trials[0].user_attrs["reason"] == "stopped from outside by SIGTERM"


# Ctrl-C


def test_ctrl_c_waits_for_all_jobs_and_gives_their_trials_back(
    work_off: Any, start: Any, journal: Path, tmp_path: Path, until: Any, load: Any
) -> None:
    def work() -> None:
        halted = threading.Event()

        def launch(trial: ClaimedTrial) -> TrialResult:
            (tmp_path / f"begun{trial.number}").touch()
            halted.wait(60)
            time.sleep(0.4 * (2 - trial.number))  # the jobs need a moment for their checkpoints
            return TrialResult("stopped", "signal", "SIGINT")

        with pytest.raises(KeyboardInterrupt):
            work_off(journal, 4, launch, workers=2, halt=halted.set)

    child = start(work)
    until(lambda: len(list(tmp_path.glob("begun*"))) == 2)
    os.kill(child.pid, signal.SIGINT)
    assert (ended := child.wait()).code == 0, ended.err
    trials = load(journal)
    assert [trial.state for trial in trials] == [TrialState.RUNNING] * 2
    assert [trial.user_attrs[OWNER] for trial in trials] == [""] * 2


def test_a_second_ctrl_c_does_not_wait_for_the_checkpoints(
    work_off: Any, start: Any, journal: Path, tmp_path: Path, until: Any
) -> None:
    def work() -> None:
        killed = threading.Event()
        asked: list[int] = []

        def halt() -> None:
            asked.append(1)
            (tmp_path / "asked").touch()
            if len(asked) == 2:
                killed.set()

        def launch(trial: ClaimedTrial) -> TrialResult:
            (tmp_path / f"begun{trial.number}").touch()
            killed.wait(60)
            return TrialResult("stopped", "signal", "SIGINT")

        with pytest.raises(KeyboardInterrupt):
            work_off(journal, 4, launch, workers=2, halt=halt)
        assert len(asked) == 2

    child = start(work)
    until(lambda: len(list(tmp_path.glob("begun*"))) == 2)
    os.kill(child.pid, signal.SIGINT)
    until((tmp_path / "asked").exists)
    time.sleep(0.2)
    os.kill(child.pid, signal.SIGINT)
    assert (ended := child.wait()).code == 0, ended.err


def test_a_launcher_that_breaks_ends_the_sweep_and_loses_no_trial(
    work_off: Any, journal: Path, load: Any
) -> None:
    def launch(trial: ClaimedTrial) -> TrialResult:
        raise OSError("no more processes")

    for workers in (1, 2):
        with pytest.raises(OSError, match="no more processes"):
            work_off(journal, 4, launch, workers=workers)
        assert {trial.user_attrs[OWNER] for trial in load(journal)} == {""}
