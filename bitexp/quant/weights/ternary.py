"""The built-in quantizers: full, full_norm, binary, ternary_mean, ternary_median."""

from __future__ import annotations

import math

from torch import Tensor

from bitexp.quant.quantizer import QUANTIZERS, Quantizer


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
