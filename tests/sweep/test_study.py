"""A study: an exact budget, trials that change hands, failures that are recorded and tried again."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from bitexp.common.errors import UserError
from bitexp.sweep.ownership import OWNER, SEEN, began, gone, machine, myself
from bitexp.sweep.study import ClaimedTrial, TrialResult

Launch = Callable[[ClaimedTrial], TrialResult]


def finished(value: float = 1.0) -> TrialResult:
    return TrialResult("finished", values=[value])


def failed(kind: str = "crash", reason: str = "RuntimeError: no") -> TrialResult:
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


# the budget


def test_the_budget_is_that_of_the_study_however_often_it_is_started(work_off: Any, journal: Path) -> None:
    for budget, numbers in ((3, [0, 1, 2]), (3, []), (5, [3, 4]), (4, [])):
        trials = work_off(journal, budget, launch := Recorder())
        assert launch.numbers == numbers
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 5
    assert len({trial.params["optimizer.lr"] for trial in trials}) == 5


def test_threads_make_exactly_the_budget(work_off: Any, journal: Path) -> None:
    lock, numbers = threading.Lock(), []

    def launch(trial: ClaimedTrial) -> TrialResult:
        with lock:
            numbers.append(trial.number)
        time.sleep(0.01)
        return finished()

    trials = work_off(journal, 17, launch, workers=4)
    assert sorted(numbers) == list(range(17))
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 17


@pytest.mark.parametrize(("kind", "budget"), [("journal", 14), ("sqlite", 6)])
def test_processes_make_exactly_the_budget(
    kind: str, budget: int, work_off: Any, start: Any, tmp_path: Path
) -> None:
    place = tmp_path / "study.journal" if kind == "journal" else f"sqlite:///{tmp_path}/study.db"
    made = tmp_path / "made"

    def launch(trial: ClaimedTrial) -> TrialResult:
        with made.open("a") as file:
            file.write(f"{trial.number} {os.getpid()}\n")
        time.sleep(0.05)
        return finished()

    children = [start(lambda: work_off(place, budget, launch, workers=2)) for _ in range(2)]
    for child in children:
        assert (ended := child.wait()).code == 0, ended.err
    numbers, pids = zip(*(line.split() for line in made.read_text().splitlines()), strict=True)
    assert sorted(map(int, numbers)) == list(range(budget))
    assert len(set(pids)) == 2
    trials = work_off(place, budget, Recorder())
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * budget


# trials that change hands


def test_a_trial_whose_worker_was_killed_goes_on_under_its_number(
    work_off: Any, start: Any, journal: Path, draws: Any
) -> None:
    undisturbed = draws(work_off(journal.with_name("undisturbed"), 4))
    kill = Recorder(_2=lambda: os.kill(os.getpid(), signal.SIGKILL))
    for _ in range(2):
        assert start(lambda: work_off(journal, 4, kill)).wait().code == -signal.SIGKILL
    said: list[ClaimedTrial] = []

    def launch(trial: ClaimedTrial) -> TrialResult:
        said.append(trial)
        return finished()

    trials = work_off(journal, 4, launch)
    assert [trial.number for trial in said] == [2, 3]
    assert said[0].begun == 3
    assert said[0].taken_from is not None
    assert said[0].taken_from.startswith(machine().partition("/")[0])
    assert said[1].taken_from is None
    assert draws(trials) == undisturbed
    assert all(trial.state == TrialState.COMPLETE for trial in trials)


def test_a_trial_of_a_living_worker_is_waited_for(
    work_off: Any, start: Any, journal: Path, tmp_path: Path, until: Any
) -> None:
    begun, go = tmp_path / "begun", tmp_path / "go"

    def hold(trial: ClaimedTrial) -> TrialResult:
        begun.touch()
        until(go.exists)
        return finished(2.0)

    child = start(lambda: work_off(journal, 1, hold))
    until(begun.exists)
    thread = threading.Timer(0.3, go.touch)
    thread.start()
    trials = work_off(journal, 1, launch := Recorder())
    assert launch.numbers == []
    assert child.wait().code == 0
    assert [trial.values for trial in trials] == [[2.0]]


def test_the_one_who_waits_takes_over_when_the_other_dies(
    work_off: Any, start: Any, journal: Path, tmp_path: Path, until: Any
) -> None:
    begun = tmp_path / "begun"

    def hold(trial: ClaimedTrial) -> TrialResult:
        begun.touch()
        time.sleep(60)
        return finished()

    child = start(lambda: work_off(journal, 1, hold))
    until(begun.exists)
    thread = threading.Timer(0.3, os.kill, (child.pid, signal.SIGKILL))
    thread.start()
    trials = work_off(journal, 1, launch := Recorder())
    assert child.wait().code == -signal.SIGKILL
    assert launch.numbers == [0]
    assert trials[0].user_attrs["begun"] == 2


def elsewhere(study: Any, number: int, seconds_ago: float) -> None:
    """Makes a trial one of another machine."""
    owner = {"machine": "elsewhere/0/pid", "pid": os.getpid(), "began": began(os.getpid())}
    trial_id = study.trials()[number]._trial_id
    study.study._storage.set_trial_user_attr(trial_id, OWNER, json.dumps(owner))
    study.study._storage.set_trial_user_attr(trial_id, SEEN, time.time() - seconds_ago)


def test_a_trial_of_another_machine_is_taken_over_when_it_was_silent_for_long(
    opened: Any, journal: Path
) -> None:
    there, here = (opened(journal, 1, lost_after=100.0, heartbeat=1000.0) for _ in range(2))
    trial = there.next()
    elsewhere(there, 0, seconds_ago=50)
    assert here.next() is None
    assert [other.number for other in here.waiting()] == [0]
    elsewhere(there, 0, seconds_ago=150)
    taken = here.next()
    assert taken is not None
    assert (taken.number, taken.begun, taken.params) == (0, 2, trial.params)
    assert taken.taken_from == f"elsewhere:{os.getpid()}"
    elsewhere_again = json.dumps({"machine": "elsewhere/0/pid", "pid": 1, "began": "1"})
    there._me = elsewhere_again
    assert not there.tell(trial, finished(1.0))
    assert here.tell(taken, finished(2.0))
    assert not there.tell(trial, finished(3.0))
    assert here.trials()[0].values == [2.0]
    for study in (there, here):
        study.close()


def test_an_answer_that_was_lost_is_no_second_ending(opened: Any, journal: Path) -> None:
    study = opened(journal, 2, retries=0)
    trial = study.next()
    assert study.tell(trial, failed())
    assert study.tell(trial, failed())
    assert study.failures == 1
    study.close()


def test_signs_of_life_are_given_while_a_trial_is_worked_on(opened: Any, journal: Path, until: Any) -> None:
    study = opened(journal, 1, heartbeat=0.02)
    trial = study.next()
    seen = study.trials()[0].user_attrs[SEEN]
    until(lambda: study.trials()[0].user_attrs[SEEN] > seen)
    study.tell(trial, finished())
    study.close()
    seen = study.trials()[0].user_attrs[SEEN]
    time.sleep(0.1)
    assert study.trials()[0].user_attrs[SEEN] == seen


@pytest.mark.parametrize("how", ["stopped", "raised", "closed"])
def test_what_is_left_behind_in_order_may_be_taken_at_once(
    how: str, work_off: Any, opened: Any, journal: Path
) -> None:
    if how == "closed":
        study = opened(journal, 2)
        study.next()
        study.close()
    else:

        def launch(trial: ClaimedTrial) -> TrialResult:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            work_off(journal, 2, launch)
    trials = work_off(journal, 2, launch := Recorder())
    assert launch.numbers == [0, 1]
    assert [trial.user_attrs["begun"] for trial in trials] == [2, 1]


def test_who_is_gone() -> None:
    me = json.loads(myself())
    assert me["pid"] == os.getpid()
    assert not gone({OWNER: json.dumps(me)}, 1.0)
    assert gone({OWNER: json.dumps({**me, "began": "1"})}, 1e9)  # the process id was given to another
    assert gone({OWNER: json.dumps({**me, "pid": 2**22 + 1})}, 1e9)
    assert gone({OWNER: ""}, 1e9)
    assert gone({}, 1e9)
    other = {OWNER: json.dumps({**me, "machine": "other/boot/pid"})}
    assert gone(other, 1e3)
    assert gone({**other, SEEN: time.time() - 11}, 10)
    assert not gone({**other, SEEN: time.time() - 9}, 10)


def test_a_dead_process_that_nobody_has_waited_for_is_gone(until: Any) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    until(lambda: began(pid) is None)
    os.waitpid(pid, 0)


# failures


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


# several objectives


def test_a_study_may_have_several_objectives(work_off: Any, define: Any, journal: Path) -> None:
    directions = ("maximize", "minimize")
    definition = define("NSGAIISampler", directions=directions)
    trials = work_off(
        journal, 3, lambda trial: TrialResult("finished", values=[trial.number, 3.0]), definition=definition
    )
    assert [trial.values for trial in trials] == [[0.0, 3.0], [1.0, 3.0], [2.0, 3.0]]


# the definition


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"fixed": ["seed=1"]}, "fixed"),
        ({"space": "finite"}, "space"),
        ({"sampler": "TPESampler"}, "sampler"),
        ({"pruner": {"name": "MedianPruner"}}, "pruner"),
        ({"objectives": ["val/loss"]}, "objectives"),
    ],
)
def test_a_name_stands_for_one_definition(
    changes: dict[str, Any], word: str, opened: Any, define: Any, journal: Path
) -> None:
    opened(journal).close()
    opened(journal, 99, retries=7).close()
    with pytest.raises(
        UserError, match=rf"the study 'study' was started with a different definition \({word}: .*study=NAME"
    ):
        opened(journal, definition=define(**changes))


def test_the_order_of_words_defines_nothing_and_their_values_do(define: Any) -> None:
    a, b = define(fixed=["a=1", "b=2"]), define(fixed=["b=2", "a=1"])
    assert a.digest() == b.digest()
    digests = {define(fixed=["a=2"]).digest(), define("TPESampler").digest(), define(space="finite").digest()}
    assert len({a.digest(), *digests}) == 4


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
