"""Jobs in processes of their own, each of which does what jobs should not."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bitexp.common.files import read_json, write_json
from bitexp.sweep.ownership import began
from bitexp.sweep.processes import JOB, Processes

RECORD = {"overrides": ["seed=1"], "tuned": False}


class Jobs:
    """Shell scripts as the jobs of a multirun."""

    def __init__(
        self, folder: Path, slots: Any = (None,), timeout: float | None = None, grace: float = 20
    ) -> None:
        self.folder = folder
        self.processes = Processes(slots, timeout, grace)

    def __call__(self, script: str, number: int = 0) -> dict[str, Any]:
        return self.processes.run(["sh", "-c", script], self.folder, number, RECORD)

    def index(self, number: int = 0) -> Path:
        return self.folder / "jobs" / f"{number}.json"

    def log(self, number: int = 0) -> str:
        return (self.folder / "logs" / f"{number}.log").read_text()

    def wrote(self, number: int = 0, status: str = "finished") -> str:
        """A script that leaves a record, as a job of ours does."""
        text = f'{{"status": "{status}", "kind": null, "reason": null}}'
        return f"echo {shlex.quote(text)} > {self.index(number)}"


def parallel(jobs: Jobs, *scripts: str) -> tuple[list[threading.Thread], dict[int, Any]]:
    """Jobs in threads, by number, and where their records will be."""
    records: dict[int, Any] = {}

    def make(number: int, script: str) -> None:
        records[number] = jobs(script, number)

    threads = [threading.Thread(target=make, args=pair) for pair in enumerate(scripts)]
    for thread in threads:
        thread.start()
    return threads, records


def pids(*files: Path) -> list[int]:
    return [int(file.read_text()) for file in files]


def filled(*files: Path) -> bool:
    return all(file.exists() and file.read_text().strip() for file in files)


# how jobs end


def test_a_record_that_the_job_wrote_is_what_counts(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    assert jobs(jobs.wrote())["status"] == "finished"
    assert jobs(f"{jobs.wrote()}; kill -SEGV $$")["status"] == "finished"  # while the interpreter ended


@pytest.mark.parametrize(
    ("script", "kind", "reason"),
    [
        (
            "echo one; echo two >&2; kill -SEGV $$",
            "died",
            "its process was killed by SIGSEGV. {log}: one | two",
        ),
        ("kill -ABRT $$", "died", "its process was killed by SIGABRT. {log}"),
        ("kill -KILL $$", "died", "its process was killed by SIGKILL; out of memory?. {log}"),
        ("echo; echo 'trainer.epochs=-1 is less'; exit 2", "config", "trainer.epochs=-1 is less"),
        ("exit 2", "config", "bad input"),
        ("exit 3", "died", "its process ended with exit code 3 and no result. {log}"),
        ("true", "died", "its process ended with exit code 0 and no result. {log}"),
        ("seq 9", "died", "its process ended with exit code 0 and no result. {log}: 5 | 6 | 7 | 8 | 9"),
        ("echo garbage > {index}", "died", "its process ended with exit code 0 and no result. {log}"),
    ],
)
def test_a_job_that_left_no_record_gets_one(script: str, kind: str, reason: str, tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    record = jobs(script.replace("{index}", str(jobs.index())))
    reason = reason.replace("{log}", str(tmp_path / "logs" / "0.log"))
    assert record == {**RECORD, "status": "failed", "kind": kind, "reason": reason}
    assert read_json(jobs.index()) == record


@pytest.mark.parametrize(("code", "name"), [(130, "SIGINT"), (143, "SIGTERM")])
def test_a_job_that_was_stopped_before_it_began_is_stopped(code: int, name: str, tmp_path: Path) -> None:
    record = Jobs(tmp_path)(f"exit {code}")
    assert (record["status"], record["kind"], record["reason"]) == ("stopped", "signal", name)


def test_a_record_of_an_earlier_attempt_says_nothing(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    jobs.index().parent.mkdir()
    write_json(jobs.index(), {"status": "finished"})
    assert jobs("exit 1")["status"] == "failed"


def test_the_log_holds_what_every_attempt_said(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    jobs("echo first; exit 1")
    jobs("echo second >&2; exit 1")
    assert jobs.log() == "first\nsecond\n"


def test_nothing_can_be_asked_of_a_job(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    jobs("read answer || echo nobody")
    assert jobs.log() == "nobody\n"


# the time limit


def test_a_job_past_its_time_limit_is_asked_to_stop_then_killed_with_all_it_started(
    tmp_path: Path, until: Any
) -> None:
    jobs = Jobs(tmp_path, timeout=0.5, grace=0.2)
    mine, helper = tmp_path / "mine", tmp_path / "helper"
    trap = "trap 'echo asked' TERM"
    record = jobs(f"{trap}; sleep 60 & echo $! > {helper}; echo $$ > {mine}; while true; do sleep 0.05; done")
    assert (record["status"], record["kind"]) == ("failed", "timeout")
    assert record["reason"] == "it took longer than 0.00833333 minutes"
    assert read_json(jobs.index()) == record
    assert "asked" in jobs.log()
    for pid in pids(mine, helper):
        until(lambda pid=pid: began(pid) is None)


def test_a_job_that_stops_when_it_is_asked_to_took_too_long_all_the_same(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, timeout=0.3)
    stopped = jobs.wrote(status="stopped")
    record = jobs(
        f"trap '{stopped.replace(chr(39), chr(34))}; exit 143' TERM; while true; do sleep 0.05; done"
    )
    assert (record["status"], record["kind"]) == ("failed", "timeout")


def test_a_job_that_ended_just_in_time_has_ended(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, timeout=0.3)
    assert jobs(f"{jobs.wrote()}; sleep 60")["status"] == "finished"


def test_what_a_job_started_ends_with_it(tmp_path: Path, until: Any) -> None:
    jobs, helper = Jobs(tmp_path), tmp_path / "helper"
    jobs(f"sleep 60 & echo $! > {helper}; {jobs.wrote()}")
    until(lambda: began(pids(helper)[0]) is None)


# slots


def test_each_job_sees_the_gpus_of_its_slot_and_no_two_share_one(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, slots=["0", "1,2"])
    says = f"$CUDA_VISIBLE_DEVICES >> {tmp_path}/note"
    note = f"echo + {says}; sleep 0.1; echo - {says}"
    threads, records = parallel(jobs, *(f"{note}; {jobs.wrote(n)}" for n in range(6)))
    for thread in threads:
        thread.join()
    assert [records[n]["status"] for n in range(6)] == ["finished"] * 6
    lines = [line.split() for line in (tmp_path / "note").read_text().splitlines()]
    assert {slot for _, slot in lines} == {"0", "1,2"}
    for slot in ("0", "1,2"):
        signs = [sign for sign, name in lines if name == slot]
        assert signs == ["+", "-"] * (len(signs) // 2)


def test_without_slots_of_gpus_the_environment_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    (jobs := Jobs(tmp_path))(f"echo $CUDA_VISIBLE_DEVICES ${JOB}")
    assert jobs.log() == f"7 {os.getpid()}\n"


def test_a_slot_comes_back_whatever_happened(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, slots=["0"])
    with pytest.raises(FileNotFoundError):
        jobs.processes.run(["/no/such/program"], tmp_path, 0, RECORD)
    jobs("kill -SEGV $$")
    assert jobs(jobs.wrote())["status"] == "finished"


# stopping


def test_stopping_asks_all_jobs_and_begins_no_others(tmp_path: Path, until: Any) -> None:
    jobs = Jobs(tmp_path, slots=[None, None])
    ready = [tmp_path / f"ready{n}" for n in range(2)]

    def script(number: int) -> str:
        stop = f"trap 'sh {tmp_path}/stop{number}; exit 130' INT"
        (tmp_path / f"stop{number}").write_text(jobs.wrote(number, "stopped"))
        return f"{stop}; echo $$ > {tmp_path}/ready{number}; while true; do sleep 0.05; done"

    threads, records = parallel(jobs, *(script(n) for n in range(2)))
    until(lambda: filled(*ready))
    late, _ = parallel(jobs, f"touch {tmp_path}/never")
    jobs.processes.stop()
    for thread in (*threads, *late):
        thread.join()
    assert [records[n]["status"] for n in range(2)] == ["stopped"] * 2
    assert jobs(f"touch {tmp_path}/never", 5)["status"] == "stopped"
    assert read_json(jobs.index(5)) == {**RECORD, "status": "stopped", "kind": "signal", "reason": "SIGINT"}
    assert not (tmp_path / "never").exists()


def test_a_job_that_dies_of_the_stopping_is_stopped_and_not_failed(tmp_path: Path, until: Any) -> None:
    """While Python starts, nothing catches the signal yet."""
    jobs, ready = Jobs(tmp_path), tmp_path / "ready0"
    (thread,), records = parallel(jobs, f"echo $$ > {ready}; exec sleep 60")
    until(lambda: filled(ready))
    jobs.processes.stop()
    thread.join()
    assert records[0]["status"] == "stopped"


def test_stopping_twice_kills(tmp_path: Path, until: Any) -> None:
    jobs, ready = Jobs(tmp_path), tmp_path / "ready0"
    (thread,), records = parallel(jobs, f"trap '' INT; echo $$ > {ready}; while true; do sleep 0.05; done")
    until(lambda: filled(ready))
    jobs.processes.stop()
    time.sleep(0.1)
    assert thread.is_alive()
    jobs.processes.stop()
    thread.join()
    assert records[0]["status"] == "stopped"
    assert began(pids(ready)[0]) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_when_the_watching_process_is_killed_its_jobs_end(tmp_path: Path, start: Any, until: Any) -> None:
    ready = tmp_path / "ready"
    program = (
        "import os, time; from pathlib import Path; from bitexp.sweep.processes import end_with_parent;"
        f"end_with_parent(); Path({str(ready)!r}).write_text(str(os.getpid())); time.sleep(60)"
    )

    def watch() -> None:
        Processes([None], None, 1.0).run([sys.executable, "-c", program], tmp_path, 0, RECORD)

    child = start(watch)
    until(lambda: filled(ready))
    (pid,) = pids(ready)
    assert began(pid) is not None
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    until(lambda: began(pid) is None)
