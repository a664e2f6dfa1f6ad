"""What has to be known to build a model again: registry names with their arguments, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from bitexp.config.old import upgraded_description
from bitexp.models import MODELS
from bitexp.quant import quantize
from bitexp.quant.presets import as_quantizer


@dataclass(frozen=True)
class Description:
    """A model with its quantizer, the patterns of its layers, and how its inputs are prepared.

    `quantizer` is the section of a config, or a preset's name; it is kept with all options of its parts.
    """

    model: str
    model_arguments: dict[str, Any]
    quantizer: dict[str, Any] | str = "ternary_mean"
    include: list[str] = field(default_factory=lambda: ["*"])
    exclude: list[str] = field(default_factory=list)
    preprocessing: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.quantizer, str):
            object.__setattr__(self, "quantizer", as_quantizer(self.quantizer).to_json())

    @staticmethod
    def of(data: Mapping[str, Any]) -> Description:
        """From a file, of whatever age. Raises `TypeError` where it is none."""
        return Description(**upgraded_description(data))

    def build(self) -> nn.Module:
        """The model with its quantized layers, untrained."""
        model = MODELS.get(self.model)(**self.model_arguments)
        quantize(model, self.quantizer, self.include, self.exclude)
        return model
