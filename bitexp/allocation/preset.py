"""An allocation as a preset: `conf/quantizer/NAME.yaml`, which trains and is evaluated as any other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bitexp.common.errors import UserError
from bitexp.common.files import write_atomic
from bitexp.common.format import path_text
from bitexp.quant.options import LayerOptions

FIRST = "# Bits by layer, as `python -m bitexp allocate` found them:"
"""How such a file begins; no other file is overwritten."""


def rules(
    names: Sequence[str], ties: Sequence[Sequence[int]], weights: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """A rule for each layer, or for those that are tied: `{match, weights}`, in the order of the network."""
    group = {place: min(tie) for tie in ties for place in tie}
    members: dict[int, list[str]] = {}
    for place, name in enumerate(names):
        members.setdefault(group.get(place, place), []).append(name)
    return [
        {"match": found[0] if len(found) == 1 else found, "weights": dict(weights[place])}
        for place, found in members.items()
    ]


def preset_text(
    name: str, section: Mapping[str, Any], layers: Sequence[Mapping[str, Any]], remarks: Sequence[str]
) -> str:
    """The YAML of a preset.

    Args:
        section: the quantizer that all layers begin with, in full.
        layers: its rules. remarks: lines of the comment at its head.
    """
    defaults = {**LayerOptions().to_json(), "stages": [], "include": None, "exclude": None}
    kept = {key: value for key, value in section.items() if key in defaults and value != defaults[key]}
    lines = [FIRST, *(f"# {remark}" for remark in remarks), "defaults: [/base/quantizer@_here_, _self_]"]
    lines += [f"name: {name}", *(f"{key}: {inline(value)}" for key, value in kept.items()), "layers:"]
    return "\n".join([*lines, *(f"  - {inline(rule)}" for rule in layers)]) + "\n"


def selection(config: Mapping[str, Any]) -> dict[str, Any]:
    """Which layers are quantized, where a config says other than that a model keeps some."""
    chosen, usual = config["quantizer"], {"include": ["*"], "exclude": config["model"]["full_precision"]}
    return {key: chosen[key] for key, value in usual.items() if chosen[key] != value}


def inline(value: Any) -> str:
    """A value of YAML in one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")


def place_of(name: str, folder: Path) -> Path:
    """Where a preset goes, below a folder of configs.

    Raises:
        UserError: the name cannot be one, is taken by a preset of another kind, or nothing can be written.
    """
    if not name.replace("_", "").isalnum() or not name.isascii():
        raise UserError(f"--name {name}: a preset is named by letters, digits and underscores")
    path = folder / "quantizer" / f"{name}.yaml"
    if path.exists() and not path.read_text(encoding="utf-8").startswith(FIRST):
        raise UserError(f"{path_text(path)} is another preset, which stays as it is: choose another --name")
    there = next(place for place in (path.parent, *path.parents) if place.exists())
    if not os.access(there, os.W_OK):
        raise UserError(f"{path_text(path.parent)} cannot be written: name a folder by --config-dir")
    return path


def write(path: Path, text: str) -> None:
    """Writes a preset, with the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.encode())
