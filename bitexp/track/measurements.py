"""What was measured of a finished run later, in `measurements.json` of its folder; reports read it too.

A measurement is kept under its name with what it was asked for and the packed file it is of. Asked the same
again, it is found; asked otherwise, it takes the place of the older one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitexp.common.files import read_json, write_json
from bitexp.track.folder import RunFolder, checksum, is_number

FILE = "measurements.json"


def measured(folder: Path, name: str, asked: Mapping[str, Any]) -> dict[str, float] | None:
    """The metrics of a measurement by their names, where it was made of the run as it is.

    Args:
        asked: all that they depend on beside the packed file, as JSON values.
    """
    entry, wanted = entries(folder).get(name, {}), request(folder, asked)
    return metrics_of(entry) if {key: entry.get(key) for key in wanted} == wanted else None


def keep(folder: Path, name: str, asked: Mapping[str, Any], metrics: Mapping[str, float]) -> dict[str, float]:
    """Keeps the metrics of a measurement, and returns what is kept: numbers that are finite."""
    numbers = {key: float(value) for key, value in metrics.items() if is_number(value)}
    entry = {**request(folder, asked), "metrics": numbers}
    write_json(folder / FILE, {**entries(folder), name: entry})
    return numbers


def request(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a measurement is of."""
    return {"asked": json.loads(json.dumps(asked)), "packed": checksum(RunFolder(folder).packed)}


def later_metrics(folder: Path, packed: Any) -> dict[str, float]:
    """All metrics that were measured of the packed file with this checksum, by name."""
    found: dict[str, float] = {}
    for entry in entries(folder).values():
        if packed is None or entry.get("packed") == packed:
            found |= metrics_of(entry)
    return found


def entries(folder: Path) -> dict[str, dict[str, Any]]:
    """The measurements of a run by their names; what is none is left out."""
    value = read_json(folder / FILE)
    items = value.items() if isinstance(value, dict) else ()
    return {name: entry for name, entry in items if isinstance(entry, dict)}


def metrics_of(entry: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a measurement."""
    metrics = entry.get("metrics")
    items = metrics.items() if isinstance(metrics, dict) else ()
    return {str(name): float(value) for name, value in items if is_number(value)}
