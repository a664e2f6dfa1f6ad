"""The live view of a sweep: what runs, what is done, the best so far, the time left.

On a terminal a table that renews itself; elsewhere one calm line for each job that ends.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bitexp.common.console import Report
from bitexp.common.format import duration

ROWS = 12  # running jobs that the table shows


class LiveView:
    """Told when jobs begin and end, by any thread.

    Args:
        total: how many there will be, None where nobody knows; workers: how many run at once;
        better: `min` or `max` of the value that is shown, where there is one; live: whether a table may
            renew itself (not while a job prints to the same terminal).
    """

    def __init__(
        self,
        report: Report,
        total: int | None,
        workers: int,
        better: str | None = None,
        live: bool = True,
        look: Callable[[int], str] = lambda number: "",
    ) -> None:
        self.report, self.total, self.workers, self.better = report, total, workers, better
        self.done = 0
        self.counts: Counter[str] = Counter()
        self.best: tuple[float, int, str] | None = None
        self._look = look
        self._running: dict[int, tuple[str, float]] = {}
        self._seconds: list[float] = []
        self._lock = threading.RLock()
        show = live and report.console.is_terminal
        self._live = (
            Live(console=report.console, get_renderable=self._table, refresh_per_second=2, transient=True)
            if show
            else None
        )

    def __enter__(self) -> LiveView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def skip(self, statuses: Mapping[str, int]) -> None:
        """Counts what was done before this sweep began."""
        with self._lock:
            self.counts.update(statuses)
            self.done += sum(statuses.values())

    def began(self, number: int, what: str) -> None:
        """A job begins."""
        with self._lock:
            self._running[number] = (what, time.monotonic())

    def ended(
        self, number: int, status: str, reason: str | None = None, values: Sequence[float] = ()
    ) -> None:
        """A job has ended; `values` are those of its objectives."""
        with self._lock:
            what, since = self._running.pop(number, ("", time.monotonic()))
            seconds = time.monotonic() - since
            self._seconds.append(seconds)
            self.done += 1
            self.counts[status] += 1
            self.note_best(number, what, values)
            outcome = ", ".join(f"{value:.4f}" for value in values) or (reason or "")
            place = f"{self.done}/{self.total}" if self.total else str(self.done)
            parts = [f"[{place}] {number}: {status}", outcome, what, duration(seconds)]
            self.report.line(" · ".join([*filter(None, parts), *self.outlook()]))

    def line(self, text: str) -> None:
        """A line above the table."""
        with self._lock:
            self.report.line(text)

    def note_best(self, number: int, what: str, values: Sequence[float]) -> None:
        """Keeps the best value of one objective."""
        if len(values) != 1 or self.better is None or math.isnan(values[0]):
            return
        sign = 1 if self.better == "max" else -1
        if self.best is None or sign * values[0] > sign * self.best[0]:
            self.best = (values[0], number, what)

    def left(self) -> float | None:
        """Seconds until the end, from what jobs took so far."""
        if self.total is None or not self._seconds:
            return None
        mean = sum(self._seconds) / len(self._seconds)
        return max(0.0, mean * (self.total - self.done) / self.workers)

    def outlook(self) -> list[str]:
        """The best so far and the time left, in words."""
        words = []
        if self.best is not None:
            words.append(f"best {self.best[0]:.4f} by {self.best[1]}")
        if (left := self.left()) and self.total != self.done:
            words.append(f"about {duration(left)} left")
        return words

    def _table(self) -> Any:
        with self._lock:
            running = Table(box=None, pad_edge=False, show_header=False)
            for number, (what, since) in list(self._running.items())[:ROWS]:
                spent = duration(time.monotonic() - since)
                running.add_row(f"{number}:", "running", spent, self._look(number), Text(what))
            place = f"{self.done} of {self.total}" if self.total else str(self.done)
            counts = ", ".join(f"{count} {status}" for status, count in self.counts.items())
            best = [f"best {self.best[0]:.4f} by {self.best[1]} ({self.best[2]})"] if self.best else []
            left = self.left()
            ahead = [f"about {duration(left)} left"] if left else []
            summary = " · ".join([f"{place} done" + (f": {counts}" if counts else ""), *best, *ahead])
            return Group(running, Text(summary))
