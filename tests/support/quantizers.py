"""Quantizers as the YAML has them."""

from __future__ import annotations

import functools
from typing import Protocol

from bitexp.config.schema import QuantizerChoice
from bitexp.quant import QUANTIZERS, Quantizer
from tests.support.configs import compose_config


class MakeQuantizer(Protocol):
    """Builds the quantizer of conf/quantizer/PRESET.yaml, with some of its keys changed."""

    def __call__(self, preset: str, **changes: object) -> Quantizer: ...


@functools.cache
def choice(preset: str) -> QuantizerChoice:
    """What `quantizer=PRESET` composes to."""
    return QuantizerChoice.model_validate(compose_config(f"quantizer={preset}")["quantizer"])


def make_quantizer(preset: str, **changes: object) -> Quantizer:
    """The quantizer of a preset, with some of its keys changed."""
    chosen = choice(preset)
    arguments = {"name": chosen.name, **chosen.arguments, **changes}
    quantizer: Quantizer = QUANTIZERS.get(arguments.pop("name"))(**arguments)
    return quantizer
