"""Begun and unfinished runs of the same settings, found without a look at every run.

A run's id follows from its config, its data and its code. What data and code an experiment's runs are of is
kept in `outputs/EXPERIMENT/.kinds`, a file for each pair: ten thousand runs cost a start no more than ten.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from bitexp.common.files import read_json, write_json
from bitexp.config.schema import Settings
from bitexp.track.folder import RunFolder, identity, is_over, outputs

KINDS = ".kinds"
COMPLETE = "complete.json"
"""There once every run of the experiment was looked at; runs that begin later add their own."""

Kind = tuple[str, Mapping[str, str]]
"""The fingerprint of the data, and the digests of the code."""


def note_kind(folder: RunFolder, attempt: Mapping[str, Any]) -> None:
    """Keeps what data and code a run that begins is of."""
    with contextlib.suppress(OSError):
        keep(folder.path.parent, (str(attempt.get("data", "")), attempt.get("code") or {}))


def keep(experiment: Path, kind: Kind) -> None:
    """Writes a pair down, where it is new."""
    text = json.dumps(kind, sort_keys=True)
    place = experiment / KINDS / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    if not place.exists():
        place.parent.mkdir(exist_ok=True)
        write_json(place, {"data": kind[0], "code": dict(kind[1])})


def kinds(experiment: Path) -> list[Kind]:
    """The pairs of all runs of an experiment; at first, and where a file is damaged, by a look at each."""
    found = [read_json(path) for path in sorted((experiment / KINDS).glob("*.json"))]
    pairs: list[dict[str, Any]] = [entry for entry in found if is_kind(entry)]
    if (experiment / KINDS / COMPLETE).exists() and len(pairs) == len(found) - 1:
        return [(entry["data"], entry["code"]) for entry in pairs]
    seen: dict[str, Kind] = {}
    for path in sorted(experiment.glob("*/provenance.json")):
        if attempts := RunFolder(path.parent).attempts():
            kind = attempts[-1].get("data", ""), attempts[-1].get("code") or {}
            seen[json.dumps(kind, sort_keys=True)] = kind
    with contextlib.suppress(OSError):  # a folder that cannot be written is looked at again
        for kind in seen.values():
            keep(experiment, kind)
        if seen:
            write_json(experiment / KINDS / COMPLETE, {})
    return list(seen.values())


def is_kind(entry: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a file holds a pair."""
    if not isinstance(entry, dict) or not isinstance(entry.get("data"), str):
        return False
    code = entry.get("code")
    return isinstance(code, dict) and all(isinstance(digest, str) for digest in code.values())


def unfinished_runs(settings: Settings) -> Iterator[RunFolder]:
    """Begun and unfinished runs of these very settings, on whatever data, by whatever code."""
    config, experiment = settings.model_dump(mode="json"), outputs() / settings.name
    for run_id in sorted({identity(config, data, code) for data, code in kinds(experiment)}):
        folder = RunFolder(experiment / run_id)
        if folder.path.is_dir() and folder.attempts() and not is_over(folder.result()):
            yield folder
