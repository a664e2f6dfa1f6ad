"""Runs as a table in one file, a line each: what is known of them on this machine and from others."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitexp.common.errors import UserError
from bitexp.common.files import read_text, write_atomic
from bitexp.common.spelling import nearest
from bitexp.report.formats import harmless
from bitexp.report.runs import Problem, Run, clean, read_run
from bitexp.track.folder import validation_of

KEPT = ("val/", "test/", "quant/", "size/")
"""Beginnings of the metrics that are kept."""
TEXT = (
    "id", "experiment", "seed", "setting", "status", "headline", "better", "data", "code", "source",
    "torch", "python", "machine", "threads", "started", "seconds", "steps", "lr_decay_sum", "margin",
)  # fmt: skip
"""The columns before those of the metrics."""
FINISHED, DIVERGED = "finished", "diverged"
"""How a run ended; a table without the column `status` has runs that are finished alone."""
NEEDED = ("id", "experiment", "seed", "setting", "headline", "better", "data", "source")


@dataclass(frozen=True)
class Known:
    """A run that is finished, or whose loss became NaN: a line of the file."""

    id: str
    facts: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def diverged(self) -> bool:
        """Whether its loss became NaN, so that it has no metrics."""
        return self.facts.get("status") == DIVERGED

    @property
    def score(self) -> float:
        """The headline metric, of the test set."""
        return self.metrics[self.facts["headline"]]

    def metric(self, name: str) -> float:
        """A metric by its name. Raises `UserError` where the run has not measured it."""
        if name in self.metrics:
            return self.metrics[name]
        known = [metric for metric in self.metrics if metric.count("/") == 1]
        hint = nearest(name, known)
        raise UserError(
            f"{self.facts.get('setting')} has no {name}.{hint} It has measured {', '.join(sorted(known))}"
        )

    @property
    def validated(self) -> float:
        """The headline metric, of the validation part. Raises `UserError` where nothing was held out."""
        name = validation_of(self.facts["headline"])
        if name not in self.metrics:
            raise UserError(f"{self.facts.get('setting')} has no {name}: data.val_size has to be above 0")
        return self.metrics[name]

    @property
    def sign(self) -> int:
        """1 where more is better, else -1."""
        return -1 if self.facts["better"] == "min" else 1

    @property
    def seconds(self) -> float | None:
        """How long it took; None where that is not known."""
        try:
            return float(self.facts.get("seconds", ""))
        except ValueError:
            return None


def known_of(run: Run) -> Known:
    """The line of a run that is finished or has diverged."""
    attempt, result = run.attempt, run.result
    machine = [str(gpu) for gpu in attempt.get("gpus") or []] or [str(attempt.get("processor", ""))]
    facts = {
        "id": run.id,
        "experiment": run.name,
        "seed": run.seed,
        "setting": shlex.join(setting_of(run.overrides)),
        "status": DIVERGED if run.diverged else FINISHED,
        "headline": result.get("headline"),
        "better": result.get("better"),
        "data": run.data,
        "code": json.dumps(attempt.get("code") or {}, sort_keys=True) if attempt.get("code") else "",
        "source": result.get("source"),
        "torch": (attempt.get("versions") or {}).get("torch"),
        "python": attempt.get("python"),
        "machine": f"{', '.join(machine)}, {attempt.get('cores', '?')} cores",
        "threads": attempt.get("threads"),
        "started": str(attempt.get("started", ""))[:19],
        "seconds": result.get("seconds"),
        "steps": result.get("steps"),
        "lr_decay_sum": result.get("lr_decay_sum"),
        "margin": run.margin,
    }
    if run.diverged:
        return Known(run.id, as_texts(facts))
    last = {name: curve[-1][1] for name, curve in run.curves.items() if name.count("/") == 1}
    metrics = {name: value for name, value in {**last, **run.metrics}.items() if name.startswith(KEPT)}
    return Known(run.id, as_texts(facts), metrics)


def as_texts(facts: Mapping[str, Any]) -> dict[str, str]:
    """Facts as they stand in the file."""
    return {key: "" if value is None else str(value) for key, value in facts.items()}


def setting_of(words: Iterable[str]) -> list[str]:
    """The words of a run that say what it is: without its seed, and without what changes no result."""
    return [
        word
        for word in words
        if not any(
            key == (word.lstrip("+~").partition("=")[0]) or word.lstrip("+~").startswith(f"{key}.")
            for key in ("seed", "logger", "report", "callbacks.checkpoint.keep", "hydra")
        )
    ]


def known_run(folder: Path) -> Known | None:
    """The line of the run in a folder; None where there is nothing to know yet, or it cannot be read."""
    run = None if not folder.is_dir() else read_run(folder)
    if run is None or isinstance(run, Problem) or not (run.finished or run.diverged):
        return None
    return known_of(run)


def read_record(path: Path) -> dict[str, Known]:
    """The runs in a file by their ids; none where there is no file.

    Raises:
        UserError: it is none of ours, or a line of it is damaged.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    reader = csv.DictReader(io.StringIO(text))
    columns = reader.fieldnames or []
    if missing := [name for name in NEEDED if name not in columns]:
        raise UserError(f"{path} is no table of runs: the columns {', '.join(missing)} are missing")
    found = {}
    for number, line in enumerate(reader, start=2):
        known = read_line(line)
        if known is None:
            raise UserError(f"{path}, line {number} is damaged: it has no id, or no number for its headline")
        found[known.id] = known
    return found


def joined(*tables: Mapping[str, Known]) -> dict[str, Known]:
    """Tables as one, of each run the line that counts."""
    found: dict[str, Known] = {}
    for table in tables:
        found |= {key: counting(found.get(key), run) for key, run in table.items()}
    return found


def counting(before: Known | None, after: Known) -> Known:
    """Which of two lines of a run counts: the later one, but none that diverged after one that is known."""
    return before if before is not None and after.diverged else after


def read_line(line: Mapping[str | Any, str | None]) -> Known | None:
    """A line of the file; None where it is damaged."""
    metrics = {}
    for name, text in line.items():
        if name is None or text is None:
            return None
        if name not in TEXT and text:
            try:
                metrics[name] = float(text)
            except ValueError:
                return None
    facts = {name: as_it_was(line.get(name) or "") for name in TEXT}
    facts["status"] = facts["status"] or FINISHED
    known = Known(facts["id"], facts, metrics)
    measured = known.diverged or math.isfinite(metrics.get(facts["headline"], math.nan))
    return known if known.id and measured and facts["status"] in (FINISHED, DIVERGED) else None


def as_it_was(text: str) -> str:
    """A text before it was made harmless for spreadsheets."""
    return text[1:] if text.startswith("'") and harmless(text[1:]) == text else text


def write_record(path: Path, runs: Iterable[Known]) -> None:
    """Writes runs as such a file, by experiment, setting and seed."""
    ordered = sorted(runs, key=lambda run: (run.facts["experiment"], run.facts["started"], run.id))
    names = sorted({name for run in ordered for name in run.metrics})
    out = io.StringIO()
    writer = csv.DictWriter(out, [*TEXT, *names], lineterminator="\n")
    writer.writeheader()
    for run in ordered:
        facts = {name: harmless(text) for name, text in run.facts.items()}
        writer.writerow({**facts, **{name: repr(value) for name, value in run.metrics.items()}})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, clean(out.getvalue()).encode())
