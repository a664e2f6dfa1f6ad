"""The quantizers that have names: conf/quantizer/NAME.yaml, of bitexp and of the packages that extend it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from bitexp.common.registry import UnknownName
from bitexp.common.spelling import nearest
from bitexp.config.paths import conf_folders
from bitexp.quant.quantizer import Quantizer

GROUP = "quantizer"


class Presets(Mapping[str, Quantizer]):
    """Presets by name, read from YAML as Hydra composes them, without Hydra."""

    def __getitem__(self, name: str) -> Quantizer:
        """Raises `UnknownName` with the known words and the nearest match."""
        known = list(self)
        if name not in known:
            raise UnknownName(f"unknown quantizer '{name}'.{nearest(name, known)} Known: {', '.join(known)}")
        return Quantizer.of(read(f"{GROUP}/{name}"))

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def __iter__(self) -> Iterator[str]:
        files = {path.stem for folder in conf_folders() for path in (folder / GROUP).glob("*.yaml")}
        return iter(sorted(files))

    def __len__(self) -> int:
        return len(list(iter(self)))


def read(name: str) -> dict[str, Any]:
    """A YAML of conf/ with the files in its defaults list merged in, interpolations left out."""
    path = next(file for folder in conf_folders() if (file := folder / f"{name}.yaml").is_file())
    own = yaml.safe_load(path.read_text()) or {}
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


QUANTIZERS = Presets()


def as_quantizer(value: Quantizer | Mapping[str, Any] | str) -> Quantizer:
    """A quantizer itself, from its config, or a preset by name."""
    if isinstance(value, Quantizer):
        return value
    if isinstance(value, str):
        return QUANTIZERS[value]
    return Quantizer.of(value)
