"""A study: an exact budget, trials that change hands, several objectives, what defines it."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from bitexp.common.errors import UserError
from bitexp.sweep.ownership import OWNER, SEEN, Silences, began, gone, machine, myself
from bitexp.sweep.study import ClaimedTrial, TrialResult
from tests.support.marks import others_slow
from tests.support.studies import Recorder, failed, finished

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


@pytest.mark.parametrize(("kind", "budget"), others_slow([("journal", 14), ("sqlite", 6)], [("journal", 14)]))
def test_processes_make_exactly_the_budget(
    kind: str, budget: int, work_off: Any, start: Any, tmp_path: Path
) -> None:
    place = tmp_path / "study.journal" if kind == "journal" else f"sqlite:///{tmp_path}/study.db"
    made = tmp_path / "made"

    def launch(trial: ClaimedTrial) -> TrialResult:
        with made.open("a") as file:
            file.write(f"{trial.number} {os.getpid()}\n")
        for _ in range(400):  # until the other process has begun, which may take its time
            if len({line.split()[1] for line in made.read_text().splitlines()}) == 2:
                break
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


def elsewhere(study: Any, number: int, clock: float) -> None:
    """Makes a trial one of another machine, which gives a sign of life by its own clock."""
    owner = {"machine": "elsewhere/0/pid", "pid": os.getpid(), "began": began(os.getpid())}
    trial_id = study.trials()[number]._trial_id
    study.study._storage.set_trial_user_attr(trial_id, OWNER, json.dumps(owner))
    study.study._storage.set_trial_user_attr(trial_id, SEEN, clock)


def test_a_trial_of_another_machine_is_taken_over_when_it_was_silent_for_long(
    opened: Any, journal: Path
) -> None:
    there, here = (opened(journal, 1, lost_after=100.0, heartbeat=1000.0) for _ in range(2))
    passed = 0.0
    here.silences = Silences(lambda: passed)
    trial = there.next()
    for clock in (time.time() - 1e6, time.time() + 1e6):
        elsewhere(there, 0, clock)
        assert here.next() is None
        passed += 99.0
        assert here.next() is None
    assert [other.number for other in here.waiting()] == [0]
    passed += 2.0
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
    assert not gone({OWNER: json.dumps(me)}, 1e9, 1.0)
    assert gone({OWNER: json.dumps({**me, "began": "1"})}, 0.0, 1e9)  # the process id was given to another
    assert gone({OWNER: json.dumps({**me, "pid": 2**22 + 1})}, 0.0, 1e9)
    assert gone({OWNER: ""}, 0.0, 1e9)
    assert gone({}, 0.0, 1e9)
    other = {OWNER: json.dumps({**me, "machine": "other/boot/pid"})}
    assert gone(other, 11.0, 10.0)
    assert not gone(other, 9.0, 10.0)


def test_a_sign_of_life_is_a_change() -> None:
    clock = iter([0.0, 5.0, 7.0, 8.0, 20.0])
    silences = Silences(lambda: next(clock))
    assert [silences(0, sign) for sign in (9, 9, 3)] == [0.0, 5.0, 0.0]
    assert silences(1, 3) == 0.0
    assert silences(0, 3) == 13.0


def test_a_dead_process_that_nobody_has_waited_for_is_gone(until: Any) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    until(lambda: began(pid) is None)
    os.waitpid(pid, 0)


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
