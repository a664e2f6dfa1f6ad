"""The quantizers that have names: conf/quantizer/NAME.yaml, of bitexp and of the packages that extend it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bitexp.config.choices import choices, read_choice
from bitexp.quant.quantizer import Quantizer

GROUP = "quantizer"


class Presets(Mapping[str, Quantizer]):
    """Presets by name, read from YAML as Hydra composes them, without Hydra."""

    def __getitem__(self, name: str) -> Quantizer:
        """Raises `UnknownName` with the known words and the nearest match."""
        return Quantizer.of(read_choice(GROUP, name))

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def __iter__(self) -> Iterator[str]:
        return iter(choices(GROUP))

    def __len__(self) -> int:
        return len(list(iter(self)))


QUANTIZERS = Presets()


def as_quantizer(value: Quantizer | Mapping[str, Any] | str) -> Quantizer:
    """A quantizer itself, from its config, or a preset by name."""
    if isinstance(value, Quantizer):
        return value
    if isinstance(value, str):
        return QUANTIZERS[value]
    return Quantizer.of(value)
