"""The trackers of a run at work: none of them may end it, since metrics.csv keeps everything anyway."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bitexp.common.console import Report
from bitexp.common.errors import Pruned
from bitexp.common.lightning import pl
from bitexp.common.secrets import redacted
from bitexp.config.schema import Settings
from bitexp.track.folder import RunFolder
from bitexp.track.metrics import rows
from bitexp.track.trackers import Tracker


@contextlib.contextmanager
def tracking(
    trackers: Mapping[str, Tracker], settings: Settings, folder: RunFolder, report: Report
) -> Iterator[list[Guarded]]:
    """The loggers of a run; in the end the services hear whether the block failed. Pruning is no failure."""
    started: list[tuple[Tracker, Guarded]] = []
    typed, failed = sys.argv[1:], True
    sys.argv[1:] = redacted(typed)  # which wandb keeps and Lightning repeats
    try:
        for name, tracker in trackers.items():
            with reported(f"{name} could not start, so this run is not tracked there", report):
                inner = tracker.start(settings, folder)
                earlier = folder.metrics if tracker.replays else None
                started.append((tracker, Guarded(name, inner, report, earlier)))
        yield [logger for _, logger in started]
        failed = False
    except Pruned:
        failed = False
        raise
    finally:
        for tracker, logger in started:
            with reported(f"{logger.name} could not finish", report):
                tracker.finish(logger.inner, failed)
        sys.argv[1:] = typed


class Guarded(pl.loggers.Logger):
    """A tracker's logger; once it fails, that is reported and it gets nothing any more.

    Args:
        earlier: the metrics.csv of earlier attempts, to be sent before anything else.
    """

    def __init__(
        self, name: str, inner: pl.loggers.Logger, report: Report, earlier: Path | None = None
    ) -> None:
        super().__init__()
        self._name, self.inner, self.report = name, inner, report
        self._earlier = earlier
        self.works = True

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str | int | None:
        return self.inner.version

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if not self.works:
            return
        with self._watched():
            if self._earlier is not None:  # only now it is cut back to the checkpoint
                earlier, self._earlier = self._earlier, None
                for at, values in rows(earlier):
                    self.inner.log_metrics(values, at)
            self.inner.log_metrics(metrics, step)

    def save(self) -> None:
        if self.works:
            with self._watched():
                self.inner.save()

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """A tracker gets the config when it starts; nothing to do here."""

    def finalize(self, status: str) -> None:
        """Of the training, which the test still follows: `tracking` ends the run."""

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        done = False
        with reported(f"{self.name} failed, so this run is not tracked there any more", self.report):
            yield
            done = True
        self.works = done


@contextlib.contextmanager
def reported(what: str, report: Report) -> Iterator[None]:
    """Says what went wrong and goes on: a service that is away may raise nearly anything."""
    try:
        yield
    except Exception as error:
        report.line(f"{what} (metrics.csv has everything): {error}")
