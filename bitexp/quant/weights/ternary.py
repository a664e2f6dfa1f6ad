"""Codes -1, 0, 1: `clamp(round(W / scale))`, with a mean or a median for a scale."""

from __future__ import annotations

from torch import Tensor

from bitexp.quant.levels import TERNARY
from bitexp.quant.parts import WEIGHTS, WeightQuantizer
from bitexp.quant.sums import row_means


@WEIGHTS.register("ternary_mean")
class TernaryMean(WeightQuantizer):
    """Scale mean|W| (BitNet b1.58, arXiv 2402.17764)."""

    levels = TERNARY

    def scale(self, rows: Tensor) -> Tensor:
        return row_means(rows.abs())


@WEIGHTS.register("ternary_median")
class TernaryMedian(WeightQuantizer):
    """Scale median|W|, the lower of two middle values (BitNet b1.58 Reloaded, arXiv 2407.09527)."""

    levels = TERNARY

    def scale(self, rows: Tensor) -> Tensor:
        return self.backend.abs_median(rows)
