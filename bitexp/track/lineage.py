"""The runs behind a run: whose weights it starts from, whose outputs it learns from, and what they took."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from bitexp.common.files import parse_yaml, read_text
from bitexp.track.folder import RunFolder, identity, is_number

ENTRY: dict[str, Any] = {"run": str, "quantizer": str, "setting": str, "steps": int, "seconds": (int, float)}
"""What is kept of each, and of which types."""


def ancestors(folders: Iterable[RunFolder]) -> list[dict[str, Any]]:
    """The runs of these folders and those behind them, each once, the latest first."""
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        result, attempts = folder.result() or {}, folder.attempts()
        config = config_of(folder)
        own = {
            "run": f"{folder.path.parent.name}/{folder.id}",
            "quantizer": str(result.get("quantizer")),
            "seed": config.get("seed"),
            "setting": setting(config),
            "steps": int(result.get("steps") or 0),
            "seconds": float(result.get("seconds") or 0),
        }
        for entry in [own, *known(attempts[-1] if attempts else {})]:
            found.setdefault(entry["run"], entry)
    return list(found.values())


def known(attempt: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs behind an attempt at a run, as it keeps them; what is of another form is left out."""
    entries = attempt.get("ancestors")
    return [
        entry
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict)
        and all(isinstance(entry.get(key), kind) for key, kind in ENTRY.items())
        and is_number(entry["seconds"])
        and is_number(entry["steps"])
    ]


def setting(config: dict[str, Any]) -> str:
    """What runs have in common that differ in their seeds, and those of what they start from, alone."""
    alike = copy.deepcopy(config) | {"seed": None}
    for key in ("start", "distill"):
        if isinstance(alike.get(key), dict):
            alike[key].pop("identity", None)
    return identity(alike, "")


def config_of(folder: RunFolder) -> dict[str, Any]:
    """The config of a run, or nothing where it cannot be read."""
    try:
        config = parse_yaml(read_text(folder.path / "config.yaml"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return dict(config) if isinstance(config, dict) else {}
