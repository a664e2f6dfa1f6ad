"""Run folders as values: found below any path, read tolerantly, nothing in them executed."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from bitexp.common.errors import UserError, first_line
from bitexp.common.files import LARGEST_YAML, parse_yaml, read_bytes, read_json, read_text
from bitexp.common.secrets import redacted
from bitexp.config.old import upgraded
from bitexp.report.conditions import conditions
from bitexp.report.origins import origins
from bitexp.report.teachers import with_teacher
from bitexp.track.folder import ADDED, RunFolder, flaw, is_number, validation_of
from bitexp.track.measurements import later_metrics
from bitexp.track.provenance import command_of

NESTED = {key: value for key, value in ADDED.items() if "." in key and not isinstance(value, dict)}
"""The added keys that are a value in a section."""
SKIPPED = ("checkpoints", "wandb", "studies", "report")


@dataclass(frozen=True)
class Run:
    """One run folder: its config by dotted key, what was typed, its last attempt, how it ended."""

    path: Path
    flat: Mapping[str, Any] = field(repr=False)
    overrides: tuple[str, ...]
    attempt: Mapping[str, Any] = field(repr=False)
    result: Mapping[str, Any]
    conditions: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    """`bitexp.report.conditions`: under what its attempts were made."""
    first: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Its first attempt."""
    later: Mapping[str, float] = field(default_factory=dict, repr=False)
    """What was measured of it after it had finished."""

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def name(self) -> str:
        """Of the experiment."""
        return clean(str(self.flat.get("name") or self.path.parent.name))

    @property
    def status(self) -> str:
        """finished, failed, pruned, stopped; `unfinished` where no result was written yet."""
        return str(self.result.get("status", "unfinished"))

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def diverged(self) -> bool:
        """Whether it ended since its loss became NaN."""
        return self.result.get("kind") == "diverged"

    @property
    def precision(self) -> str:
        """The quantizer's name; an old run of a preset holds its class, so what was typed comes first."""
        chosen = self.typed.get("quantizer.name") or self.typed.get("quantizer")
        return chosen or str(self.flat.get("quantizer.name", "?"))

    @cached_property
    def typed(self) -> dict[str, str]:
        """The values that were typed by their keys, without those that were deleted."""
        words = (word.lstrip("+").partition("=") for word in self.overrides if not word.startswith("~"))
        return {key.partition("@")[0]: value for key, _, value in words}

    @property
    def seed(self) -> Any:
        return self.flat.get("seed")

    @cached_property
    def metrics(self) -> dict[str, float]:
        """What result.json measured, numbers only, and what was measured later."""
        if not self.finished:
            return {}
        metrics = self.result.get("metrics", {})
        return {**self.later, **{name: float(value) for name, value in metrics.items() if is_number(value)}}

    @property
    def headline(self) -> str:
        """The metric that this run is compared by."""
        return str(self.result["headline"])

    @property
    def score(self) -> float:
        """The headline metric."""
        return self.metrics[self.headline]

    @property
    def validated(self) -> float | None:
        """The same metric on the validation part, where there is one."""
        return self.metrics.get(validation_of(self.headline))

    @property
    def data(self) -> str:
        """Fingerprint of the data it was trained on."""
        return str(self.attempt.get("data", ""))

    @property
    def margin(self) -> float | None:
        """`report.margin` as it was when the run began."""
        margin = self.first.get("margin")
        return float(margin) if margin is not None and is_number(margin) and margin > 0 else None

    @property
    def command(self) -> str:
        """What makes this run again, by itself, whatever sweep it was part of."""
        return command_of(self.overrides)

    @property
    def span(self) -> tuple[datetime, datetime] | None:
        """When its last attempt began and when it ended."""
        began, ended = (moment(value) for value in (self.attempt.get("started"), self.result.get("ended")))
        return None if began is None or ended is None else (began, ended)

    @cached_property
    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """metrics.csv: for each metric its values by step; lines that cannot be read are left out."""
        curves: dict[str, list[tuple[int, float]]] = {}
        try:
            lines = read_text(self.path / "metrics.csv", errors="replace").split("\n")[1:]
        except OSError:
            return curves
        for line in lines:
            step, _, rest = line.partition(",")
            _, _, rest = rest.partition(",")
            name, _, value = rest.rpartition(",")
            try:
                point = int(step), float(value)
            except ValueError:
                continue
            if not is_number(point[0]) or not is_number(point[1]):
                continue
            curves.setdefault(name, []).append(point)
        return curves


class NoRuns(UserError):
    """There is nothing to compare, yet."""


@dataclass(frozen=True)
class Problem:
    """What could not be read, or did not become a run at all, and why."""

    path: Path
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", redacted(self.reason))  # it may quote a file


def moment(text: Any) -> datetime | None:
    """A time stamp of a run's files; None where there is none to compare with others."""
    try:
        stamp = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return stamp if stamp.tzinfo else None


def read_runs(paths: Iterable[Path]) -> tuple[list[Run], list[Problem]]:
    """Every run at or below the paths once, and what there was that is none.

    A path may be a run, a folder of runs at any depth, or the index of a multirun (`sweeps/DATE`). Of
    copies of a run the one that is finished counts.

    Raises:
        UserError: a path does not exist; NoRuns: there is no run anywhere.
    """
    runs: dict[tuple[str, str, str], Run] = {}
    problems: list[Problem] = []
    paths = list(paths)
    for path in paths:
        if not path.is_dir():
            what = "is a file" if path.exists() else "does not exist"
            raise UserError(
                f"{path} {what}: name the folder of a run, or one with runs in it. They are kept in "
                "outputs/EXPERIMENT/ID (BITEXP_OUTPUTS moves outputs)"
            )
        for place in places(path, problems):
            run = read_run(place)
            if isinstance(run, Problem):
                problems.append(run)
                continue
            key = (run.name, run.id, run.data)
            if key not in runs or (run.finished and not runs[key].finished):
                runs[key] = run
    if not runs and not problems:
        raise NoRuns(
            f"no runs in {', '.join(map(str, paths))}: looked for folders with a config.yaml or "
            "a result.json at any depth, as `python -m bitexp` leaves them in outputs/EXPERIMENT/ID"
        )
    return sorted(runs.values(), key=lambda run: (run.name, str(run.path))), problems


def places(path: Path, problems: list[Problem]) -> Iterator[Path]:
    """The folders of runs at or below a path; jobs of an index without a run become problems."""
    if (path / "jobs").is_dir():
        for record in job_records(path):
            if (place := job_run(path, record)) is not None:
                yield place
            elif record.get("status") != "finished":
                what = ", ".join(words_of(record))
                problems.append(Problem(path, f"{what}: {record.get('status')}: {record.get('reason')}"))
        return
    for folder, inside, files in os.walk(path):
        if "config.yaml" in files or "result.json" in files:
            inside.clear()
            yield Path(folder)
        inside[:] = sorted(name for name in inside if name not in SKIPPED and not name.startswith("."))


def job_records(sweep: Path) -> list[dict[str, Any]]:
    """The jobs of a multirun, in their order; garbage is left out."""
    numbered = [path for path in (sweep / "jobs").glob("*.json") if path.stem.isdecimal()]
    records = []
    for path in sorted(numbered, key=lambda path: int(path.stem)):
        with contextlib.suppress(OSError):
            records.append(read_json(path))
    return [{**redacted(record), "run": record.get("run")} for record in records if isinstance(record, dict)]


def words_of(record: Mapping[str, Any]) -> list[str]:
    """What was typed for a job."""
    words = record.get("overrides")
    return [str(word) for word in words] if isinstance(words, list) and words else ["a job"]


def job_run(sweep: Path, record: Mapping[str, Any]) -> Path | None:
    """Where the run of a job is: where it was, or beside the sweeps where all was moved or copied."""
    if not isinstance(record.get("run"), str):
        return None
    there = Path(record["run"])
    candidates = (there, sweep.parent.parent / there.name)
    return next((place for place in candidates if os.path.isdir(place)), None)  # of whatever name


def read_run(path: Path) -> Run | Problem:
    """The run in a folder, or what is wrong with it."""
    try:
        config = read_config(path)
        if not isinstance(config, dict):
            return Problem(path, "config.yaml holds no config")
        flat = flattened(config)
    except FileNotFoundError:
        return Problem(path, "config.yaml is missing")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        return Problem(path, f"config.yaml cannot be read: {first_line(error)}")
    try:
        result = json.loads(read_bytes(path / "result.json"))
    except FileNotFoundError:
        result = {}
    except (OSError, ValueError, RecursionError) as error:
        return Problem(path, f"result.json is damaged or cannot be read: {first_line(error)}")
    try:
        attempts: list[dict[str, Any]] = redacted(RunFolder(path).attempts())
    except OSError as error:
        return Problem(path, f"provenance.json cannot be read: {first_line(error)}")
    if result != {} and (reason := flaw(result)):
        return Problem(path, reason)
    result = redacted(result)
    last = attempts[-1] if attempts else {}
    compared = origins({**with_added(with_teacher(flat, last)), **code_of(last)}, last)
    first = attempts[0] if attempts else {}
    under = conditions(attempts, result)
    return Run(path, compared, typed(path), last, result, under, first, later(path, result))


def with_added(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the keys that its sections have got since, at the values that mean as before."""
    parents = {key.rpartition(".")[0] for key in flat}
    return {**{key: value for key, value in NESTED.items() if key.rpartition(".")[0] in parents}, **flat}


def later(path: Path, result: Mapping[str, Any]) -> dict[str, float]:
    """What was measured of a run later, of the packed file that it has; nothing where that cannot be read."""
    files = result.get("files")
    try:
        return later_metrics(path, files.get("packed.safetensors") if isinstance(files, Mapping) else None)
    except OSError:
        return {}


def code_of(attempt: Mapping[str, Any]) -> dict[str, str]:
    """The code that the id of a run counts, as keys beside those of the config: `quantizer.code`."""
    code = attempt.get("code")
    return {f"{key}.code": str(value) for key, value in code.items()} if isinstance(code, Mapping) else {}


def read_config(path: Path) -> Any:
    """The config of the run in a folder, in today's words. Raises `OSError` and what `parse_yaml` raises."""
    config = parse_yaml(read_text(path / "config.yaml", 4 * LARGEST_YAML))
    return upgraded(config) if isinstance(config, Mapping) else config


def typed(path: Path) -> tuple[str, ...]:
    """The overrides of a run, where they are kept."""
    try:
        words = parse_yaml(read_text(path / "overrides.yaml", 4 * LARGEST_YAML))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return ()
    return tuple(clean(redacted(str(word))) for word in words) if isinstance(words, list) else ()


def clean(text: str) -> str:
    """Text that can be encoded, whatever bytes a name was made of."""
    return text if text.isascii() else re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


FLAT: dict[int, tuple[Any, dict[str, Any]]] = {}
"""Sections of configs by their ids, flattened: runs have most of them in common (`parse_yaml`)."""
MOST_SECTIONS = 10_000


def flattened(config: Mapping[Any, Any]) -> dict[str, Any]:
    """All leaves of a config by dotted key, without secrets. A part that occurs twice raises `ValueError`."""
    flat: dict[str, Any] = {}
    for key, section in config.items():
        if not isinstance(section, dict | list):
            flat |= flatten({key: section}, set())
            continue
        known = FLAT.get(id(section))
        if known is None:
            if len(FLAT) >= MOST_SECTIONS:
                FLAT.clear()
            known = FLAT[id(section)] = section, redacted(dict(flatten({key: section}, set())))
        flat |= known[1]
    return flat


def flatten(node: Mapping[Any, Any], seen: set[int], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All leaves of a config by dotted key; lists as JSON. A part that occurs twice raises `ValueError`."""
    for key, value in node.items():
        if isinstance(value, dict | list):
            once(value, seen)
        if isinstance(value, dict) and value:
            yield from flatten(value, seen, f"{prefix}{key}.")
        else:
            yield clean(f"{prefix}{key}"), leaf(value)


def leaf(value: Any) -> Any:
    """A value of a config as one that can be compared and shown: numbers that are none become text."""
    if value is None or isinstance(value, bool) or is_number(value):
        return value
    return clean(value if isinstance(value, str) else json.dumps(value, default=str))


def once(value: Any, seen: set[int]) -> None:
    """Raises `ValueError` where YAML aliases make a part occur twice: such a file can grow without bound."""
    if id(value) in seen:
        raise ValueError("it has YAML aliases, which bitexp never writes")
    seen.add(id(value))
    for part in value if isinstance(value, list) else ():
        if isinstance(part, dict | list):
            once(part, seen)
