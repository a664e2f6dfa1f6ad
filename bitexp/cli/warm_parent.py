"""`python -m bitexp.cli.warm_parent`: has imported what jobs need, and forks each job from itself.

It starts no thread and opens nothing, so that a fork is a fresh process but for the imports: the job gets
a session, an environment, a log and random states of its own. Where forks would not be safe it says so and
ends.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from bitexp.common.errors import UserError
from bitexp.common.format import counted
from bitexp.sweep.processes import JOB
from bitexp.sweep.trial_reporter import STUDY


def main(file: int) -> None:
    """Serves the requests of a socket, by the number of its file, until it is closed.

    All is lines of JSON. First `{"prepare": words}` of a job, answered by `{"ready": true}` or
    `{"unusable": why}`; then each `{"id", "words", "environment", "log"}` by `{"started": id, "pid"}` and,
    when the job has ended, `{"ended": pid, "code"}`.
    """
    connection = socket.socket(fileno=file)
    server = Server(connection)
    while not (arrived := server.requests()):
        if arrived is None:
            return
    try:
        prepare(arrived[0]["prepare"])
        reason = unsafe()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    if reason is not None:
        send(connection, {"unusable": reason})
        return
    gc.collect()
    gc.freeze()  # so that a collection in a job writes to no page that it shares
    send(connection, {"ready": True})
    if (job := server.serve()) is not None:
        begin(job)


def prepare(words: Sequence[str]) -> None:
    """Imports what a job does, and loads what its model compiles. A wrong config is the job's to report."""
    import torch

    import bitexp.cli.job
    import bitexp.run.road
    from bitexp.cli.app import register_plugins
    from bitexp.config.compose import composed
    from bitexp.config.schema import read_settings
    from bitexp.run.build import build

    torch.set_num_threads(1)  # so that none is started
    if any(STUDY in word for word in words):
        import bitexp.sweep.study  # noqa: F401
    with contextlib.suppress(UserError):
        register_plugins()
        settings = read_settings(composed([word for word in words if "=" in word]))
        if settings.logger.get("wandb") is not None:
            import wandb  # noqa: F401
        if settings.trainer.accelerator == "cpu":
            build(settings)


def unsafe() -> str | None:
    """Why a fork of this process would not be like a fresh one, or None."""
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        return f"importing started {counted(threads - 1, 'thread')}"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "importing initialized CUDA"
    return None


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """One answer."""
    connection.sendall(json.dumps(message).encode() + b"\n")


class Server:
    """The loop of the warm parent."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.jobs: set[int] = set()
        self._rest = b""

    def serve(self) -> dict[str, Any] | None:
        """Forks a job for each request: returns in each of these with its request, in the end with None."""
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            readable, _, _ = select.select([self.connection.fileno(), woken], [], [])
            if woken in readable:
                os.read(woken, 1024)
                self.reap()
            if self.connection.fileno() in readable:
                requests = self.requests()
                if requests is None:
                    break
                for request in requests:
                    if self.fork(request):
                        signal.set_wakeup_fd(-1)
                        for file in (woken, wake):
                            os.close(file)
                        self.connection.close()
                        return request
        for pid in self.jobs:  # nobody watches them any more
            os.kill(pid, signal.SIGTERM)
        return None

    def requests(self) -> list[dict[str, Any]] | None:
        """Those that have arrived; None when there will be no more."""
        received = self.connection.recv(65536)
        *lines, self._rest = (self._rest + received).split(b"\n")
        return [json.loads(line) for line in lines] if received else None

    def fork(self, request: dict[str, Any]) -> bool:
        """Starts a job; True within it."""
        ready, set_up = os.pipe()
        request["environment"][JOB] = str(os.getpid())
        pid = os.fork()
        if pid == 0:
            os.close(ready)
            os.setsid()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(set_up)
            return True
        os.close(set_up)
        os.read(ready, 1)  # its session is there, and signals reach it
        os.close(ready)
        self.jobs.add(pid)
        send(self.connection, {"started": request["id"], "pid": pid})
        return False

    def reap(self) -> None:
        """Tells of jobs that have ended."""
        for pid, status in ended():
            if pid in self.jobs:
                self.jobs.remove(pid)
                send(self.connection, {"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def ended() -> Iterator[tuple[int, int]]:
    """The children that have ended since, with their status."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status


def begin(request: dict[str, Any]) -> None:
    """In a forked process: becomes `python -m bitexp WORDS`, as if it had just been started."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for file in (1, 2):
        os.dup2(log, file)
    os.close(log)
    os.environ.clear()
    os.environ.update(request["environment"])
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    sys.argv[1:] = request["words"]
    runpy.run_module("bitexp", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
