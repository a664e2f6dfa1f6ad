"""The live view of a sweep: what runs, what is done, the best so far, the time left.

On a terminal a table that renews itself; elsewhere one calm line for each job that ends.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from rich.live import Live
from rich.text import Text

from bitexp.common.console import Report
from bitexp.common.format import duration

Look = Callable[[int], tuple[str, float]]

LAST = 4096  # bytes of a log's end that are looked at
ROWS = 12  # running jobs that the table shows


class LastLines:
    """What jobs have last said of their training, from their logs (`train.progress`)."""

    PROGRESS = re.compile(r"(epoch \d+/\d+)  step ([\d,]+)/([\d,]+)  (.*?)  lr ")

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, number: int) -> tuple[str, float]:
        try:
            with (self.folder / f"{number}.log").open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - LAST))
                found = self.PROGRESS.findall(log.read().decode("utf-8", "replace"))
        except OSError:
            return "", 0.0
        if not found:
            return "", 0.0
        epoch, step, steps, metrics = found[-1]
        share = int(step.replace(",", "")) / max(1, int(steps.replace(",", "")))
        return f"{epoch}  {metrics}", share


class LiveView:
    """Told when jobs begin and end, by any thread.

    Args:
        total: how many there will be, None where nobody knows; workers: how many run at once;
        better: `min` or `max` of the value that is shown, where there is one; live: whether a table may
            renew itself (not while a job prints to the same terminal).
        look: what the run of a job says of itself, and the share of it that is done, 0 where unknown.
    """

    here: ClassVar[LiveView | None] = None
    """The one that tells of jobs in this very process, which then say nothing themselves."""

    def __init__(
        self,
        report: Report,
        total: int | None,
        workers: int,
        better: str | None = None,
        live: bool = True,
        look: Look = lambda number: ("", 0.0),
    ) -> None:
        self.report, self.total, self.workers, self.better = report, total, workers, better
        self.done = 0
        self.counts: Counter[str] = Counter()
        self.best: tuple[float, int, str] | None = None
        self._look = look
        self._running: dict[int, tuple[str, float]] = {}
        self._seconds: list[float] = []
        self._reasons: dict[str, int] = {}
        self._in_this_process = not live
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
        if self._in_this_process:
            LiveView.here = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        if self._in_this_process:
            LiveView.here = None

    def skip(self, statuses: Mapping[str, int]) -> None:
        """Counts what was done before this sweep began."""
        with self._lock:
            self.counts.update(statuses)
            self.done += sum(statuses.values())

    def began(self, number: int, what: str) -> None:
        """A job begins."""
        with self._lock:
            self._running[number] = (what, time.monotonic())

    def put_back(self, number: int) -> None:
        """A job that began has given way, and begins again later."""
        with self._lock:
            self._running.pop(number, None)

    @property
    def place(self) -> str:
        """Where the job stands that runs now, and what it is."""
        number, (what, _) = next(iter(self._running.items()), (self.done, ("", 0.0)))
        return f"{self.done + 1}/{self.total or '?'}  {what or number}"

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
            outcome = ", ".join(f"{value:.4f}" for value in values) or self._told(number, reason)
            place = f"{self.done}/{self.total}" if self.total else str(self.done)
            parts = [f"[{place}] {number}: {status}", outcome, what, duration(seconds)]
            self.report.sentences(" · ".join([*filter(None, parts), *self.outlook()]))

    def _told(self, number: int, reason: str | None) -> str:
        """A reason, or where it was told before."""
        first = self._reasons.setdefault(reason, number) if reason else number
        return (reason or "") if first == number else f"as {first}"

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
        """Seconds until the end, from what jobs took so far and how far those are that run."""
        now = time.monotonic()
        spent = {number: now - since for number, (_, since) in self._running.items()}
        shares = {number: self._look(number)[1] for number in spent}
        whole = {number: spent[number] / share for number, share in shares.items() if share > 0}
        known = self._seconds or list(whole.values())
        if self.total is None or not known:
            return None
        mean = sum(known) / len(known)
        # the further a job is, the more its own pace counts: at first that is of imports and warming up
        ends = {n: shares[n] * whole.get(n, mean) + (1 - shares[n]) * mean for n in spent}
        running = [max(0.0, ends[number] - seconds) for number, seconds in spent.items()]
        waiting = max(0, self.total - self.done - len(running))
        return max([(sum(running) + mean * waiting) / self.workers, *running])

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
            now = time.monotonic()
            lines = []
            for number, (what, since) in list(self._running.items())[:ROWS]:
                words = "  ".join(filter(None, (self._look(number)[0], what)))
                lines.append(f"{number}: running {duration(now - since)}  {words}")
            place = f"{self.done} of {self.total}" if self.total else str(self.done)
            counts = ", ".join(f"{count} {status}" for status, count in self.counts.items())
            best = [f"best {self.best[0]:.4f} by {self.best[1]} ({self.best[2]})"] if self.best else []
            left = self.left()
            ahead = [f"about {duration(left)} left"] if left else []
            summary = " · ".join([f"{place} done" + (f": {counts}" if counts else ""), *ahead, *best])
            return Text("\n".join([*lines, summary]), no_wrap=True, overflow="ellipsis")
