"""Configs and descriptions written by earlier versions, in today's words. They are read for ever."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOVED = {
    "quantizer.granularity": "quantizer.weights.granularity",
    "quantizer.group_size": "quantizer.weights.group_size",
    "quantizer.act_qmax": "quantizer.activations.qmax",
}
"""Keys that have another place since 2026-12, and where it is."""


def upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config as it would be written today; one of today is returned as it is."""
    quantizer = config.get("quantizer")
    if not isinstance(quantizer, Mapping) or "weights" in quantizer or "name" not in quantizer:
        return dict(config)
    arguments = {key: value for key, value in quantizer.items() if key not in ("name", *SELECTION)}
    selection = {key: quantizer[key] for key in SELECTION if key in quantizer}
    return {**config, "quantizer": {**upgraded_quantizer(str(quantizer["name"]), arguments), **selection}}


SELECTION = ("include", "exclude", "lambda_schedule")


def upgraded_quantizer(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A quantizer by the name of its class and that class's arguments, as the section of today."""
    old = {
        "norm": "none",
        "activations": "none",
        "act_qmax": 127,
        "granularity": "tensor",
        "group_size": None,
    }
    old |= {"bias": "plain", **arguments}
    section: dict[str, Any] = {"name": name, "norm": old["norm"], "bias": old["bias"]}
    section |= {"transform": "none", "sparsifier": "none", "estimator": {"name": "straight_through"}}
    section |= {"gradients": "none", "output_norm": "none", "layers": [], "stages": []}
    if name in ("full", "full_norm"):
        return {**section, "weights": "none", "activations": "none"}
    weights = {"name": name, "granularity": old["granularity"], "group_size": old["group_size"]}
    known = ("norm", "activations", "act_qmax", "granularity", "group_size", "bias")
    weights |= {key: value for key, value in arguments.items() if key not in known}
    activations: Any = "none"
    if old["activations"] == "int8":
        activations = {"name": "int8", "qmax": old["act_qmax"]}
    return {**section, "weights": weights, "activations": activations}


def upgraded_description(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `bitexp.deploy.description.Description` from a file of format 1 or 2."""
    fields = dict(data)
    if isinstance(fields.get("quantizer"), str):
        arguments = fields.pop("quantizer_arguments", {})
        fields["quantizer"] = upgraded_quantizer(fields["quantizer"], arguments)
    return fields
