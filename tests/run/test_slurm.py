"""What is asked of Slurm, and who else hears of a signal; tests/sweep/test_slurm.py asks a real one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from bitexp.common.console import Report
from bitexp.run.slurm import cancel, come_again, hand_on, queued


@pytest.fixture
def answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Puts a program of Slurm's in place that notes its words and then does what a line of shell says."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def put(name: str, line: str) -> Path:
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\n{line}\n')
        program.chmod(0o755)
        return tmp_path / "asked"

    return put


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("echo 17_0; echo 17_12", {"17_0", "17_12"}),
        ("true", set()),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", set()),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", None),
    ],
)
def test_what_is_queued(line: str, expected: set[str] | None, answering: Callable[[str, str], Path]) -> None:
    asked = answering("squeue", line)
    assert queued({"17"}) == expected
    assert asked.read_text() == "--noheader --array --format=%i --jobs=17\n"


def test_without_slurm_nothing_is_known_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert queued({"17"}) is None
    cancel({"17"}, None)


def test_jobs_are_asked_to_stop_and_then_ended(answering: Callable[[str, str], Path]) -> None:
    asked = answering("scancel", "exit 0")
    cancel({"18", "17"}, "INT")
    cancel({"17"}, None)
    cancel(set(), None)
    assert asked.read_text() == "--quiet --signal=INT 17 18\n--quiet 17\n"


@pytest.mark.parametrize(
    ("line", "tasks", "waited"), [("true", "1", 1), ("exit 1", "1", 0), ("true", "2", 0)]
)
def test_who_waits_for_another_run_is_queued_again(
    line: str, tasks: str, waited: int, answering: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job of several tasks stays, since the others would be ended within theirs."""
    slept: list[float] = []
    monkeypatch.setattr("bitexp.run.slurm.time", SimpleNamespace(sleep=slept.append))  # not that of threads
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_NTASKS", tasks)
    asked = answering("scontrol", line)
    come_again(Report(quiet=True))
    assert len(slept) == waited
    assert not asked.exists() if tasks == "2" else asked.read_text() == "requeue 17_3\n"


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """The signals that another handler of SIGUSR2 was given."""
    given: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: given.append(number))
    yield given
    signal.signal(signal.SIGUSR2, before)


def test_a_signal_goes_on_to_who_caught_it_before(heard: list[int]) -> None:
    hand_on(signal.SIGUSR2)
    assert heard == [signal.SIGUSR2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_another_ends_all_jobs_of_the_process(number: int, heard: list[int]) -> None:
    with pytest.raises(KeyboardInterrupt):
        hand_on(number)
    assert not heard


def test_so_does_one_that_nobody_else_caught() -> None:
    with pytest.raises(KeyboardInterrupt):
        hand_on(signal.SIGUSR2)


def test_who_caught_it_before_may_refuse(monkeypatch: pytest.MonkeyPatch, heard: list[int]) -> None:
    def refuse(number: int, frame: object) -> None:
        raise RuntimeError("timed-out too many times")

    signal.signal(signal.SIGUSR2, refuse)
    hand_on(signal.SIGUSR2)
