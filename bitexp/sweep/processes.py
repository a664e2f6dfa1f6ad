"""Jobs in processes of their own: slots, a time limit, a log, an account of how each ended; no orphans."""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from bitexp.common.files import read_json, write_json

JOB = "BITEXP_JOB"
"""In the environment of a process that is one job of a multirun: the process that watches it."""
STOPPED = {"status": "stopped", "kind": "signal", "reason": "SIGINT"}
STOPPING = "Stopping: the jobs under way save a checkpoint; Ctrl-C again kills them."
TAIL = 5  # lines of a job's log that are quoted when it dies


class Running(Protocol):
    """What is known of a process that runs: `subprocess.Popen` and what is like it."""

    @property
    def pid(self) -> int: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def poll(self) -> int | None: ...


Start = Callable[[Sequence[str], Mapping[str, str], Path], Running]
"""Starts a command with an environment in a session of its own; what it says is appended to a log."""


def fresh_process(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """The plain way to do so."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


class Processes:
    """Runs jobs, each in a session of its own, and leaves none behind.

    Args:
        slots: what each job that runs at once sees as CUDA_VISIBLE_DEVICES, or None; there are as many
            at once as slots.
        timeout: seconds a job may take, or None; grace: from asking it to stop until it is killed.
        start: how a job's process is started.
    """

    def __init__(
        self,
        slots: Sequence[str | None],
        timeout: float | None,
        grace: float,
        start: Start = fresh_process,
    ) -> None:
        self.timeout, self.grace, self._start = timeout, grace, start
        self._slots: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        for slot in slots:
            self._slots.put(slot)
        self._living: dict[int, Running] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def run(
        self, command: Sequence[str], folder: Path, number: int, record: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Makes one job and returns its record, which the job itself writes unless it dies.

        Args:
            command: the program and its words; folder: of the multirun, with `jobs/` and `logs/`;
            number: of the job; record: what is known about it beforehand.
        """
        index, log = folder / "jobs" / f"{number}.json", folder / "logs" / f"{number}.log"
        for file in (index, log):
            file.parent.mkdir(parents=True, exist_ok=True)
        slot = self._slots.get()
        try:
            if self._stopping.is_set():
                return self._close(index, {**record, **STOPPED})
            index.unlink(missing_ok=True)
            code, late = self._run(command, log, slot)
        finally:
            self._slots.put(slot)
        written = read_json(index)
        if isinstance(written, dict) and written["status"] == "finished":
            return written
        if late:
            limit = f"it took longer than {(self.timeout or 0) / 60:g} minutes"
            written = {**record, **(written or {}), "status": "failed", "kind": "timeout", "reason": limit}
            return self._close(index, written)
        if isinstance(written, dict):
            return written
        if self._stopping.is_set():
            return self._close(index, {**record, **STOPPED})
        return self._close(index, {**record, **account(code, log)})

    def _run(self, command: Sequence[str], log: Path, slot: str | None) -> tuple[int, bool]:
        """The exit code, and whether it took too long."""
        environment = {**os.environ, JOB: str(os.getpid())}
        if slot is not None:
            environment["CUDA_VISIBLE_DEVICES"] = slot
        process = self._start(command, environment, log)
        with self._lock:
            self._living[process.pid] = process
            if self._stopping.is_set():
                signal_group(process.pid, signal.SIGINT)
        try:
            return process.wait(self.timeout), False
        except subprocess.TimeoutExpired:
            signal_group(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self.grace)
            return process.poll() or 0, True
        finally:
            signal_group(process.pid, signal.SIGKILL)  # it, or processes that it left behind
            process.wait()
            with self._lock:
                del self._living[process.pid]

    @property
    def stopping(self) -> bool:
        """Whether jobs were asked to stop."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Asks all jobs to stop after a checkpoint; further ones are not begun. Again: kills them."""
        with self._lock:
            kind = signal.SIGKILL if self._stopping.is_set() else signal.SIGINT
            self._stopping.set()
            for pid in self._living:
                signal_group(pid, kind)

    def _close(self, index: Path, record: dict[str, Any]) -> dict[str, Any]:
        write_json(index, record)
        return record


def signal_group(pid: int, kind: int) -> None:
    """Sends a signal to a session's processes, if there are any left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, kind)


def account(code: int, log: Path) -> dict[str, Any]:
    """What became of a job that left no record."""
    lines = printed(log)
    if code == 2:  # composing its config failed
        return {"status": "failed", "kind": "config", "reason": lines[-1] if lines else "bad input"}
    if code in (129, 130, 143):
        return {"status": "stopped", "kind": "signal", "reason": signal.Signals(code - 128).name}
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; out of memory?" if -code == signal.SIGKILL else ""
        reason = f"its process was killed by {name}{hint}"
    else:
        reason = f"its process ended with exit code {code} and no result"
    return {"status": "failed", "kind": "died", "reason": f"{reason}. {log}: {last_lines(log)}".rstrip(": ")}


def printed(log: Path) -> list[str]:
    """The lines of a log that are not empty; none where there is no log."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()]


def last_lines(log: Path) -> str:
    """The end of a log in one line."""
    return " | ".join(printed(log)[-TAIL:])


def end_with_parent() -> None:
    """In a job: has the system send SIGTERM when the watching process dies, so that no orphan trains on.

    It also hears SIGINT again, which a shell makes those ignore that it starts in the background.
    """
    parent = int(os.environ.get(JOB, 0))
    if parent and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not parent or not sys.platform.startswith("linux") or os.getppid() != parent:
        return
    with contextlib.suppress(OSError, AttributeError):
        set_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before that call
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
