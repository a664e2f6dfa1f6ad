"""metrics.csv: one measured value per line (step, epoch, metric, value); cut back when a run resumes."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from bitexp.common.files import open_for_appending, write_atomic
from bitexp.common.lightning import pl

rank_zero_only = pl.utilities.rank_zero.rank_zero_only

HEADER = "step,epoch,metric,value\n"


class MetricsCsv(pl.loggers.Logger):
    """Lightning logger that appends to a CSV file which a resumed run continues as if nothing had happened.

    A checkpoint keeps what the file held (`content`), and `restore` puts that back.

    Args:
        check: called before each write; raises where the file is another's by now.
    """

    def __init__(self, path: Path, check: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.path, self._check = path, check
        self._lines: list[str] = []

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return self.path.stem

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        epoch = metrics.get("epoch", "")
        epoch = int(epoch) if epoch != "" else ""
        for name, value in metrics.items():
            if name != "epoch":
                self._lines.append(f"{step},{epoch},{name},{float(value):.9g}\n")
        if len(self._lines) > 500:
            self.flush()

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The config is in config.yaml; nothing to do here."""

    @rank_zero_only
    def flush(self) -> None:
        """Writes what is pending through to the disk; with it begins every checkpoint."""
        self._check()
        with open_for_appending(self.path) as file:
            header = HEADER if file.seek(0, os.SEEK_END) == 0 else ""
            file.write("".join([header, *self._lines]).encode())
            file.flush()
            os.fsync(file.fileno())
        self._lines.clear()

    def save(self) -> None:
        self.flush()

    def finalize(self, status: str) -> None:
        self.flush()

    def content(self) -> bytes:
        """What the file holds, all pending lines included."""
        self.flush()
        return self.path.read_bytes() if self.path.exists() else b""

    def restore(self, content: bytes) -> bool:
        """Drops what was logged after a checkpoint, which kept `content`. False where that was not there."""
        self._lines.clear()
        held = self.path.read_bytes() if self.path.exists() else b""
        if held != content:
            write_atomic(self.path, content)
        return held.startswith(content)

    def values(self, prefix: str, step: int | None = None) -> dict[str, float]:
        """The last values of the metrics that begin with `prefix`; those of one step, if given."""
        self.flush()
        last: dict[str, float] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines()[1:]:
            at, _, name, value = line.split(",")
            if name.startswith(prefix) and step in (None, int(at)):
                last[name] = float(value)
        return last


def rows(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """What was logged together, step by step, as `log_metrics` had it; nothing where there is no file."""
    if not path.exists():
        return
    lines = (line.split(",") for line in path.read_text(encoding="utf-8").splitlines()[1:])
    for (step, epoch), group in groupby(lines, key=lambda line: (line[0], line[1])):
        values = {name: float(value) for *_, name, value in group}
        yield int(step), {**values, **({"epoch": int(epoch)} if epoch else {})}


def send(trainer: pl.Trainer, values: Mapping[str, float]) -> None:
    """Gives values to every logger of a trainer, under its epoch and the number of steps taken."""
    if values:
        for logger in trainer.loggers:
            logger.log_metrics({**values, "epoch": trainer.current_epoch}, trainer.global_step)
