"""What the hub reads at the head of an exported folder's README: license, task, data, results."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitexp.common.errors import UserError
from bitexp.common.files import read_yaml
from bitexp.data import DATA
from bitexp.deploy.exporters.exporter import Packed
from bitexp.models.decoder import Decoder
from bitexp.track.folder import RunFolder, checksum, is_number

TESTED = "test_packed/"
"""What the metrics of a packed file begin with."""
UNKNOWN = ("loss",)
"""Metrics that mean nothing outside of a training."""


@dataclass(frozen=True)
class Measured:
    """What a run measured of its packed file, and on which data.

    Args:
        data: their name here. title: for people. hub: their name on the hub, where they are there.
    """

    data: str
    title: str
    hub: str | None
    metrics: Mapping[str, float]

    def __str__(self) -> str:
        """As a sentence."""
        figures = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in self.metrics.items())
        return f"On the test part of {self.title} the packed file has: {figures}."


def measured(packed: Packed) -> Measured | None:
    """Of a run's own packed file; None for one that lies somewhere, or is not the one that was tested."""
    run = RunFolder(packed.path.parent)
    result = run.result()
    if result is None or packed.path != run.packed:
        return None
    files, config = result.get("files"), read_yaml(run.path / "config.yaml")
    data = config.get("data") if isinstance(config, dict) else None
    if not isinstance(data, dict) or data.get("name") not in DATA.names():
        return None
    if not isinstance(files, dict) or files.get(packed.path.name) != checksum(packed.path):
        return None
    kind, metrics = DATA.get(data["name"]), result.get("metrics")
    hub = kind.hub_name(data)
    figures = {
        name.removeprefix(TESTED): float(f"{value:.6g}")
        for name, value in (metrics.items() if isinstance(metrics, dict) else ())
        if name.startswith(TESTED) and is_number(value) and name.removeprefix(TESTED) not in UNKNOWN
    }
    return Measured(data["name"], hub if data["name"] == "huggingface" and hub else kind.title, hub, figures)


def metadata(packed: Packed, own: Mapping[str, Any], found: Measured | None) -> dict[str, Any]:
    """The head, in the hub's words.

    Args:
        own: what the exporter says: license, tags, the library that loads it, a base model.
        found: None: nothing is known of data and results.

    Raises:
        UserError: a base model that is no name on the hub.
    """
    base = own.get("base_model")
    if base is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(base)):
        raise UserError(f"base_model={base} is no name on the hub, which is OWNER/NAME")
    task = "text-generation" if isinstance(packed.model, Decoder) else "image-classification"
    head = {key: value for key, value in own.items() if value is not None and key != "tags"}
    quantizer = packed.description.quantizer
    assert isinstance(quantizer, Mapping)
    head |= {"pipeline_tag": task, "tags": list(dict.fromkeys([*own.get("tags", ()), quantizer["name"]]))}
    if found is None:
        return head
    if found.hub is not None:
        head["datasets"] = [found.hub]
    if found.metrics:
        figures = [
            {"type": name, "name": f"test {name.replace('_', ' ')}, packed file", "value": value}
            for name, value in found.metrics.items()
        ]
        data = {"type": found.hub or found.data, "name": found.title, "split": "test"}
        head["metrics"] = list(found.metrics)
        head["model-index"] = [
            {"name": packed.name, "results": [{"task": {"type": task}, "dataset": data, "metrics": figures}]}
        ]
    return head
