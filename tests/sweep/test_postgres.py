"""A study on a real PostgreSQL server that several workers share, while workers and the server are killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from bitexp.sweep.storage import Store
from bitexp.sweep.study import ClaimedTrial, TrialResult


@pytest.fixture
def made(tmp_path: Path) -> Callable[[], list[tuple[int, int]]]:
    """What runs were made, by number of the trial and process, as the runs themselves say."""

    def read() -> list[tuple[int, int]]:
        file = tmp_path / "made"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(int(number), int(pid)) for number, pid in map(str.split, lines)]

    return read


@pytest.fixture
def run(tmp_path: Path) -> Callable[[ClaimedTrial], TrialResult]:
    """A run that takes a moment and says that it was made when it ends."""

    def launch(trial: ClaimedTrial) -> TrialResult:
        time.sleep(0.1)
        with (tmp_path / "made").open("a") as file:
            file.write(f"{trial.number} {os.getpid()}\n")
        return TrialResult("finished", values=[trial.params["task.mixup"]])

    return launch


@pytest.fixture
def together(tmp_path: Path, run: Any, until: Any) -> Callable[[ClaimedTrial], TrialResult]:
    """A run that begins when two processes have one to make."""

    def launch(trial: ClaimedTrial) -> TrialResult:
        (tmp_path / f"ready{os.getpid()}").touch()
        until(lambda: len(list(tmp_path.glob("ready*"))) == 2)
        return run(trial)

    return launch


def assert_whole(trials: Sequence[Any], made: Sequence[tuple[int, int]], budget: int) -> None:
    """Every trial of the budget was made once, and none besides."""
    assert Counter(number for number, _ in made) == dict.fromkeys(range(budget), 1)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * budget
    assert all(trial.values == [trial.params["task.mixup"]] for trial in trials)


def test_two_workers_make_exactly_the_budget(
    database: str, work_off: Any, start: Any, together: Any, made: Any, draws: Any, journal: Path
) -> None:
    children = [start(lambda: work_off(database, 8, together, workers=2)) for _ in range(2)]
    for child in children:
        assert (ended := child.wait()).code == 0, ended.err
    assert len({pid for _, pid in made()}) == 2
    trials = work_off(database, 8, together)
    assert_whole(trials, made(), 8)
    assert draws(trials) == draws(work_off(journal, 8))


def test_a_killed_worker_and_a_restarted_server_lose_nothing(
    database: str, server: Any, work_off: Any, start: Any, run: Any, together: Any, made: Any, draws: Any,
    journal: Path, until: Any, tmp_path: Path,
) -> None:  # fmt: skip
    held = tmp_path / "held"

    def hold(trial: ClaimedTrial) -> TrialResult:
        if trial.number >= 2:
            held.write_text(str(trial.number))
            time.sleep(600)
        return run(trial)

    victim = start(lambda: work_off(database, 10, hold))
    until(held.exists)
    others = [start(lambda: work_off(database, 10, together)) for _ in range(2)]
    until(lambda: len(made()) >= 3)
    server.control("-m", "immediate", "-l", str(server.log), "restart")
    until(lambda: len(made()) >= 5)
    os.kill(victim.pid, signal.SIGKILL)
    assert victim.wait().code == -signal.SIGKILL
    server.control("-m", "immediate", "-l", str(server.log), "restart")
    for child in others:
        assert (ended := child.wait()).code == 0, ended.err
    trials = work_off(database, 10, together)
    assert_whole(trials, made(), 10)
    assert trials[int(held.read_text())].user_attrs["begun"] == 2
    assert draws(trials) == draws(work_off(journal, 10))


@pytest.mark.slow
def test_a_server_that_restarts_again_and_again_costs_time_only(
    database: str, server: Any, work_off: Any, start: Any, together: Any, made: Any, draws: Any,
    journal: Path, until: Any,
) -> None:  # fmt: skip
    workers = [start(lambda: work_off(database, 12, together, workers=2, heartbeat=0.05)) for _ in range(2)]
    until(made)
    for _ in range(4):
        time.sleep(0.3)
        server.control("-m", "immediate", "-l", str(server.log), "restart")
    for child in workers:
        assert (ended := child.wait()).code == 0, ended.err
    trials = work_off(database, 12, together)
    assert_whole(trials, made(), 12)
    assert draws(trials) == draws(work_off(journal, 12))


def test_a_lock_that_was_lost_when_the_work_was_done_does_not_do_it_twice(
    database: str, server: Any, opened: Any
) -> None:
    study = opened(database, 3)
    ask, lost = study.study.ask, [True]

    def ask_and_lose(*arguments: Any) -> Any:
        trial = ask(*arguments)
        if lost.pop() if lost else False:
            kill_all(server, database)
        return trial

    study.study.ask = ask_and_lose
    assert study.next().number == 0
    assert study.next().number == 1
    assert len(study.trials()) == 2
    study.close()


def kill_all(server: Any, database: str) -> None:
    """Ends all connections to a database, and with them their locks."""
    import psycopg

    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
            [database.rpartition("/")[2]],
        )


def test_who_holds_the_lock_and_dies_holds_it_no_more(
    database: str, start: Any, until: Any, tmp_path: Path
) -> None:
    held = tmp_path / "held"

    def hold() -> None:
        with Store(database).exclusive("study"):
            held.touch()
            time.sleep(600)

    child = start(hold)
    until(held.exists)
    store, entered = Store(database), []
    with store.exclusive("another"):
        entered.append("another")
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    with store.exclusive("study"):
        entered.append("study")
    store.close()
    assert entered == ["another", "study"]


# two machines, as far as one can be two


@pytest.fixture
def namespaces() -> Iterator[list[tuple[str, str]]]:
    """Two network namespaces, each with a virtual cable to this one, and the addresses of this end."""
    if os.getuid() != 0 or shutil.which("ip") is None:
        pytest.skip("only root can make network namespaces, with iproute2")
    made: list[tuple[str, str]] = []
    try:
        for number in range(2):
            name, net = f"bitexp{os.getpid() % 10000}{number}", f"10.213.{number}"
            here, there = f"bx{os.getpid() % 10000}{number}h", f"bx{os.getpid() % 10000}{number}t"
            for words in (
                f"netns add {name}",
                f"link add {here} type veth peer name {there}",
                f"link set {there} netns {name}",
                f"addr add {net}.1/24 dev {here}",
                f"link set {here} up",
                f"-n {name} addr add {net}.2/24 dev {there}",
                f"-n {name} link set {there} up",
            ):
                done = subprocess.run(["ip", *words.split()], capture_output=True, text=True)
                if done.returncode:
                    pytest.skip(f"ip {words}: {done.stderr.strip()}")
                if words.startswith("netns add"):
                    made.append((name, f"{net}.1"))
        yield made
    finally:
        for name, _ in made:
            subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.mark.slow
def test_workers_of_two_networks_share_a_study(
    namespaces: list[tuple[str, str]], serving: Any, work_off: Any, start: Any, together: Any,
    made: Any, draws: Any, journal: Path,
) -> None:  # fmt: skip
    with serving("*") as other:

        def work(namespace: str, address: str) -> None:
            with open(f"/run/netns/{namespace}", encoding="utf-8") as file:
                enter(file.fileno())
            with pytest.raises(OSError, match="unreachable"):
                socket.create_connection(("127.0.0.1", other.port), timeout=5)
            work_off(replace(other, host=address).url("postgres"), 12, together)

        children = [start(lambda place=place: work(*place)) for place in namespaces]
        for child in children:
            assert (ended := child.wait()).code == 0, ended.err
        assert len({pid for _, pid in made()}) == 2
        trials = work_off(replace(other, host="127.0.0.1").url("postgres"), 12, together)
        assert_whole(trials, made(), 12)
        assert draws(trials) == draws(work_off(journal, 12))


def enter(file: int) -> None:
    """Joins a network namespace; `os.setns` is new in Python 3.12."""
    import ctypes

    network = 0x40000000  # CLONE_NEWNET
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(file, network):
        raise OSError(ctypes.get_errno(), "setns")
