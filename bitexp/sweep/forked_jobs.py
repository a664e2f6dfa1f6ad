"""Jobs forked from a warm parent, seen from the process that watches them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bitexp.sweep.processes import fresh_process, signal_group

BITEXP = ("-m", "bitexp")
PATIENCE = 300.0  # seconds for imports, from a cold disk


class ForkedJob:
    """A job as `subprocess.Popen` shows a process: `pid`, `wait` and `poll`."""

    def __init__(self) -> None:
        self.pid = 0
        self.code: int | None = None
        self.started, self.ended = threading.Event(), threading.Event()

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises `subprocess.TimeoutExpired`."""
        if not self.ended.wait(timeout):
            raise subprocess.TimeoutExpired("bitexp", timeout or 0)
        assert self.code is not None
        return self.code

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self.code


class WarmParent:
    """Starts jobs of bitexp by forks of one process, which is started with the first of them.

    Whatever else is to be started, and everything where forks are not possible, is a fresh process.
    Environments go through a socket: no file and no list of processes shows them.

    Args:
        say: told why there are no forks.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._lock = threading.Lock()
        self._ids = itertools.count()
        self._jobs: dict[int, ForkedJob] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._ready = threading.Event()
        self._unusable: str | None = None

    def __call__(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> subprocess.Popen[bytes] | ForkedJob:
        """Starts a command with an environment; what it says is appended to a log."""
        words = [sys.executable, *BITEXP]
        if list(command[: len(words)]) == words and self._open(command[len(words) :]):
            job = self._fork(command[len(words) :], environment, log)
            if job is not None:
                return job
        return fresh_process(command, environment, log)

    def close(self) -> None:
        """Ends the warm parent; the next job starts another."""
        if self._process is None:
            return
        if self._connection is not None:
            with contextlib.suppress(OSError):  # it has ended before
                self._connection.shutdown(socket.SHUT_RDWR)
            self._connection.close()
        self._process.wait()
        self._process, self._connection = None, None
        self._ready.clear()

    def _open(self, words: Sequence[str]) -> bool:
        """Whether there is a warm parent now; one for jobs like that of `words` is started."""
        with self._lock:
            if self._process is None:
                self._start(words)
        if not self._ready.wait(PATIENCE) and self._process is not None:
            self._process.kill()
            self._ready.wait()
        return self._unusable is None

    def _start(self, words: Sequence[str]) -> None:
        if not sys.platform.startswith("linux"):
            self._unusable = "forks are safe on Linux only"
            self._ready.set()
            return
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bitexp.cli.warm_parent", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # whose threads start when numpy is imported
                start_new_session=True,
            )
        self._connection = ours
        with contextlib.suppress(OSError):  # it has ended already
            ours.sendall(json.dumps({"prepare": list(words)}).encode() + b"\n")
        threading.Thread(target=self._listen, args=(ours,), daemon=True).start()

    def _fork(self, words: Sequence[str], environment: Mapping[str, str], log: Path) -> ForkedJob | None:
        """A job, or None where the warm parent has gone."""
        job = ForkedJob()
        with self._lock:
            number = next(self._ids)
            self._jobs[number] = job
            request = {"id": number, "words": list(words), "environment": dict(environment), "log": str(log)}
            assert self._connection is not None
            try:
                self._connection.sendall(json.dumps(request).encode() + b"\n")
            except OSError:
                del self._jobs[number]
                return None
        job.started.wait()
        return job if job.pid else None

    def _listen(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as lines, contextlib.suppress(OSError):
            for line in lines:
                self._note(json.loads(line))
        if not self._ready.is_set():
            self._unusable = self._unusable or "what jobs import cannot be imported beforehand"
            self._say(f"Each job is a fresh process: {self._unusable}")
            self._ready.set()
        with self._lock:
            lost, self._jobs = list(self._jobs.values()), {}
        for job in lost:
            self._abandon(job)

    def _note(self, message: dict[str, Any]) -> None:
        if "unusable" in message:
            self._unusable = message["unusable"]
        elif "ready" in message:
            self._ready.set()
        elif "started" in message:
            job = self._jobs[message["started"]]
            job.pid = message["pid"]
            job.started.set()
        else:
            with self._lock:
                number = next(n for n, job in self._jobs.items() if job.pid == message["ended"])
                job = self._jobs.pop(number)
            job.code = message["code"]
            job.ended.set()

    def _abandon(self, job: ForkedJob) -> None:
        """A job whose parent has died: the system has asked it to stop, and it has a while to do so."""
        if job.pid:
            wait_for_end(job.pid)
            job.code = -signal.SIGTERM
            job.ended.set()
        job.started.set()


def wait_for_end(pid: int, seconds: float = 30.0) -> None:
    """Returns when a process that is no child of ours has ended, after a while by force."""
    from bitexp.sweep.ownership import began

    first = began(pid)
    pause = threading.Event()
    for _ in range(int(seconds / 0.1)):
        if first is None or began(pid) != first:
            return
        pause.wait(0.1)
    signal_group(pid, signal.SIGKILL)
