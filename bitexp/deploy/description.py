"""What has to be known to build a model again: registry names with their arguments, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from bitexp.config.old import upgraded_description
from bitexp.models import MODELS
from bitexp.quant import Quantizer, quantize


@dataclass(frozen=True)
class Description:
    """A model with its quantizer, the patterns of its layers, and how its inputs are prepared.

    `quantizer` is the section of the config, with all options of its parts.
    """

    model: str
    model_arguments: dict[str, Any]
    quantizer: dict[str, Any]
    include: list[str]
    exclude: list[str]
    preprocessing: dict[str, Any]

    @staticmethod
    def of(data: Mapping[str, Any]) -> Description:
        """From a file, of whatever age. Raises `TypeError` where it is none."""
        return Description(**upgraded_description(data))

    def build(self) -> nn.Module:
        """The model with its quantized layers, untrained."""
        model = MODELS.get(self.model)(**self.model_arguments)
        quantize(model, Quantizer.of(self.quantizer), self.include, self.exclude)
        return model
