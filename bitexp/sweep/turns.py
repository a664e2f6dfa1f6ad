"""Which job is next: those that wait for a run that another process makes come later, and hold no slot."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from bitexp.common.files import read_json
from bitexp.sweep.ownership import began
from bitexp.track.folder import RunFolder

WAITING = "waiting"
"""The status, and the kind, of a job that needs a run which another process makes; it has left its place."""
POLL = 0.5  # seconds between looks at what is waited for

Job = tuple[int, Sequence[str]]
"""Its number and its words."""


class Turns:
    """The jobs of a launch, taken by several threads.

    Args:
        stopping: whether no job is to wait any more.
    """

    def __init__(self, jobs: Iterable[Job], stopping: Callable[[], bool] = lambda: False) -> None:
        self._ready = deque(jobs)
        self._waiting: list[tuple[float, Job, Path]] = []
        self._stopping = stopping
        self._lock = threading.Lock()

    def take(self) -> Job | None:
        """The next job, as soon as there is one; None where none is left."""
        while True:
            with self._lock:
                for entry in list(self._waiting):
                    again, job, folder = entry
                    if self._stopping() or (time.monotonic() > again and not is_made(folder)):
                        self._waiting.remove(entry)
                        self._ready.appendleft(job)
                if self._ready:
                    return self._ready.popleft()
                if not self._waiting:
                    return None
            time.sleep(POLL)

    def put_back(self, job: Job, folder: Path) -> None:
        """A job that was taken waits for the run in a folder."""
        with self._lock:
            self._waiting.append((time.monotonic() + POLL, job, folder))


def is_made(folder: Path) -> bool:
    """Whether a run seems to be under way: who waits for it looks again by its lock."""
    if RunFolder(folder).result() is not None:
        return False
    owner = read_json(folder.parent / ".locks" / f"{folder.name}.json")
    if not isinstance(owner, dict) or owner.get("host") != socket.gethostname():
        return isinstance(owner, dict)
    pid = owner.get("pid")
    return isinstance(pid, int) and began(pid) is not None
