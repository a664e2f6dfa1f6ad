"""The built-in quantizers: full, full_norm, binary, ternary_mean, ternary_median."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitexp.quant.registry import QUANTIZERS, Norm, Quantizer


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


@QUANTIZERS.register("binary")
class Binary(Quantizer):
    """Signs around the mean, sign(0) = -1; step mean|W| (BitNet, arXiv 2310.11453, eq. 1-3 and 11)."""

    bits = 1
    low, high = -1, 1

    def step(self, rows: Tensor) -> Tensor:
        return rows.abs().mean(-1, keepdim=True)

    def codes(self, rows: Tensor, step: Tensor) -> Tensor:
        return torch.where(rows > rows.mean(-1, keepdim=True), 1.0, -1.0)


class Ternary(Quantizer):
    """Codes -1, 0, 1: `clamp(round(W / step))`."""

    bits = math.log2(3)
    low, high = -1, 1


@QUANTIZERS.register("ternary_mean")
class TernaryMean(Ternary):
    """Step mean|W| (BitNet b1.58, arXiv 2402.17764)."""

    def step(self, rows: Tensor) -> Tensor:
        return rows.abs().mean(-1, keepdim=True)


@QUANTIZERS.register("ternary_median")
class TernaryMedian(Ternary):
    """Step median|W|, the lower of two middle values (BitNet b1.58 Reloaded, arXiv 2407.09527)."""

    def step(self, rows: Tensor) -> Tensor:
        return self.arithmetic.abs_median(rows)
