"""Jobs forked from a warm parent: like fresh processes in all but the time they take."""

from __future__ import annotations

import json
import os
import random
import re
import runpy
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitexp.cli import warm_parent
from bitexp.sweep.forked_jobs import ForkedJob, WarmParent
from bitexp.sweep.ownership import began
from bitexp.sweep.processes import JOB, Processes
from tests.support.configs import SMALL
from tests.support.faults import remains

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks are safe on Linux only")
RECORD = {"overrides": [], "tuned": False}
WORDS = [*SMALL, "logger=csv", "hydra.mode=RUN"]


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def warm(said: list[str]) -> Iterator[WarmParent]:
    """One for all tests of this file, as its start takes seconds."""
    parent = WarmParent(said.append)
    yield parent
    parent.close()


def make(warm: WarmParent, folder: Path, *words: str, **options: Any) -> dict[str, Any]:
    """The record of a job that makes the small run."""
    command = [
        sys.executable,
        "-m",
        "bitexp",
        *WORDS,
        f"hydra.sweep.dir='{folder}'",
        "hydra.job.num=0",
        *words,
    ]
    return Processes([options.get("slot")], options.get("timeout"), 20, warm).run(command, folder, 0, RECORD)


def long(warm: WarmParent, folder: Path, outputs: Path, until: Any) -> tuple[list[dict[str, Any]], Any, int]:
    """A job that trains on and on, in a thread: where its record will be, the thread, and its process."""
    ended: list[dict[str, Any]] = []
    words = ("trainer.epochs=100000", "trainer.train_batches=null")
    thread = threading.Thread(target=lambda: ended.append(make(warm, folder, *words)))
    thread.start()
    until(lambda: list(outputs.glob("*/*/checkpoints/last.ckpt")), 100)
    (provenance,) = outputs.glob("*/*/provenance.json")
    return ended, thread, json.loads(provenance.read_text())["attempts"][0]["pid"]


def test_a_forked_job_makes_the_run_that_any_other_process_makes(
    warm: WarmParent, said: list[str], command: Any, outputs: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("BITEXP_OUTPUTS", str(tmp_path / "alone"))
    assert command(*WORDS).code == 0
    monkeypatch.setenv("BITEXP_OUTPUTS", str(outputs))
    record = make(warm, tmp_path, "seed=1")
    assert record["status"] == "finished", record
    record = make(warm, tmp_path)
    assert record["status"] == "finished", record
    (alone,) = (tmp_path / "alone").glob("*/*/result.json")
    forked = remains(Path(record["run"]))
    assert forked.pop("packed") == (alone.parent / "packed.safetensors").read_bytes()
    assert forked["rows"] == remains(alone.parent)["rows"]
    (attempt,) = json.loads((Path(record["run"]) / "provenance.json").read_text())["attempts"]
    assert attempt["command"].startswith("python -m bitexp ")
    assert attempt["pid"] != os.getpid()
    assert "finished in" in (tmp_path / "logs" / "0.log").read_text()
    assert said == []


def test_the_parent_has_one_thread_and_no_job(warm: WarmParent, outputs: Path, tmp_path: Path) -> None:
    make(warm, tmp_path)
    assert warm._process is not None
    assert len(os.listdir(f"/proc/{warm._process.pid}/task")) == 1
    assert not Path(f"/proc/{warm._process.pid}/task/{warm._process.pid}/children").read_text().split()


def test_words_that_cannot_be_are_the_jobs_own_error(warm: WarmParent, outputs: Path, tmp_path: Path) -> None:
    record = make(warm, tmp_path, "optimizer.lr=abc")
    assert (record["status"], record["kind"]) == ("failed", "config")
    assert "optimizer.lr" in record["reason"]


@pytest.mark.slow
def test_a_job_past_its_time_limit_is_stopped(warm: WarmParent, outputs: Path, tmp_path: Path) -> None:
    words = ("trainer.epochs=100000", "trainer.train_batches=null")
    record = make(warm, tmp_path, *words, timeout=3)
    assert (record["status"], record["kind"]) == ("failed", "timeout")


@pytest.mark.slow
def test_a_job_that_is_killed_has_died(warm: WarmParent, outputs: Path, tmp_path: Path, until: Any) -> None:
    ended, thread, pid = long(warm, tmp_path, outputs, until)
    assert os.getsid(pid) == pid
    os.kill(pid, signal.SIGKILL)
    thread.join()
    assert ended[0]["reason"].startswith("its process was killed by SIGKILL; out of memory?")


@pytest.mark.slow
def test_where_the_parent_dies_its_jobs_stop_and_later_ones_are_fresh(
    warm: WarmParent, outputs: Path, tmp_path: Path, until: Any
) -> None:
    ended, thread, pid = long(warm, tmp_path, outputs, until)
    assert warm._process is not None
    os.kill(warm._process.pid, signal.SIGKILL)
    thread.join()
    assert (ended[0]["status"], ended[0]["reason"]) == ("stopped", "SIGTERM")
    assert began(pid) is None
    log = tmp_path / "log"
    later = warm([sys.executable, "-m", "bitexp", "--version"], os.environ, log)
    assert not isinstance(later, ForkedJob)
    assert later.wait() == 0
    assert log.read_text().startswith("bitexp ")


def test_a_job_has_an_environment_and_random_states_of_its_own(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def states(*_: Any, **__: Any) -> None:
        state = [sys.argv[1:], dict(os.environ), random.random(), np.random.rand()]
        sys.stdout.write(json.dumps(state) + "\n")
        sys.stdout.flush()

    monkeypatch.setattr(runpy, "run_module", states)
    log = tmp_path / "log"
    request = {"words": ["seed=1"], "environment": {"A": "1", JOB: "7"}, "log": str(log)}
    for _ in range(2):
        assert start(lambda: warm_parent.begin(request)).wait().code == 0
    first, second = (json.loads(line) for line in log.read_text().splitlines())
    assert first[:2] == second[:2] == [["seed=1"], {"A": "1", JOB: "7"}]
    assert first[2] != second[2]
    assert first[3] != second[3]


@pytest.mark.slow  # several interpreters start
def test_with_threads_or_without_linux_there_are_no_forks(
    start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsafe() -> None:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        sys.stdout.write(str(warm_parent.unsafe()))

    assert re.fullmatch(r"importing started \d+ threads?", start(unsafe).wait().out)
    monkeypatch.setattr(sys, "platform", "darwin")
    said: list[str] = []
    job = WarmParent(said.append)([sys.executable, "-m", "bitexp", "--version"], os.environ, tmp_path / "log")
    assert not isinstance(job, ForkedJob)
    assert job.wait() == 0


@pytest.mark.slow
def test_what_cannot_be_prepared_is_said_and_done_by_fresh_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/true")
    said: list[str] = []
    parent = WarmParent(said.append)
    job = parent(["/bin/true", "-m", "bitexp"], os.environ, tmp_path / "log")
    assert not isinstance(job, ForkedJob)
    assert job.wait() == 0
    assert said == ["Each job is a fresh process: what jobs import cannot be imported beforehand"]
    parent.close()
