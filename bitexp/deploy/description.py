"""What has to be known to build a model again: registry names with their arguments, as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from bitexp.models import MODELS
from bitexp.quant import QUANTIZERS
from bitexp.quant.convert import quantize


@dataclass(frozen=True)
class Description:
    """A model with its quantizer, the patterns of its layers, and how its inputs are prepared."""

    model: str
    model_arguments: dict[str, Any]
    quantizer: str
    quantizer_arguments: dict[str, Any]
    include: list[str]
    exclude: list[str]
    preprocessing: dict[str, Any]

    def build(self) -> nn.Module:
        """The model with its quantized layers, untrained."""
        model = MODELS.get(self.model)(**self.model_arguments)
        quantizer = QUANTIZERS.get(self.quantizer)(**self.quantizer_arguments)
        quantize(model, quantizer, self.include, self.exclude)
        return model
