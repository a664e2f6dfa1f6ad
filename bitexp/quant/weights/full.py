"""Full precision: the ordinary network, and the control with the inner norm."""

from __future__ import annotations

from bitexp.quant.quantizer import QUANTIZERS, Quantizer
from bitexp.quant.spec import Norm


@QUANTIZERS.register("full")
class Full(Quantizer):
    """The ordinary network: every layer stays what it is."""

    bits = 32
    replaces_layers = False
    quantizes_weights = False

    def __init__(self) -> None:
        self.norm = "none"


@QUANTIZERS.register("full_norm")
class FullNorm(Quantizer):
    """The control: the norm that quantized layers bring, in the same places, and no quantization.

    Without it, "ternary beats full precision" may be read off the norm alone.
    """

    bits = 32
    quantizes_weights = False

    def __init__(self, *, norm: Norm) -> None:
        self.norm = norm
