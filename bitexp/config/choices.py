"""What a YAML of conf/ chooses, read without Hydra, so that a notebook has the defaults of the commands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bitexp.common.files import FastLoader
from bitexp.common.registry import UnknownName
from bitexp.common.spelling import nearest
from bitexp.config.paths import conf_folders


def choices(group: str) -> list[str]:
    """The options of a group, of bitexp and of the packages that extend it."""
    return sorted({path.stem for folder in conf_folders() for path in (folder / group).glob("*.yaml")})


def read_choice(group: str, name: str) -> dict[str, Any]:
    """The section that `group=name` chooses; what refers to the rest of a config is left out.

    Raises:
        UnknownName: with the known words and the nearest match.
    """
    known = choices(group)
    if name not in known:
        raise UnknownName(f"unknown {group} '{name}'.{nearest(name, known)} Known: {', '.join(known)}")
    return read(f"{group}/{name}")


def read(name: str) -> dict[str, Any]:
    """A YAML of conf/ with the files in its defaults list merged in, interpolations left out."""
    path = next(file for folder in conf_folders() if (file := folder / f"{name}.yaml").is_file())
    own = yaml.load(path.read_text(encoding="utf-8"), FastLoader) or {}
    merged: dict[str, Any] = {}
    for entry in own.pop("defaults", ["_self_"]):
        word = str(entry).partition("@")[0]
        if word == "_self_":
            merge(merged, own)
        else:
            merge(merged, read(word.lstrip("/") if "/" in word else f"{Path(name).parent}/{word}"))
    return merged


def merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Later values win; sections are merged key by key. What refers to the rest of a config is left out."""
    for key, value in values.items():
        if isinstance(value, str) and value.startswith("${"):
            continue
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value
