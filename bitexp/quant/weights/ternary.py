"""Codes -1, 0, 1 with a scale that is computed from the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from bitexp.quant.levels import TERNARY
from bitexp.quant.parts import WEIGHTS, WeightQuantizer
from bitexp.quant.per_row import mean_where
from bitexp.quant.product import Quantized
from bitexp.quant.spec import Granularity
from bitexp.quant.sums import row_sums


@WEIGHTS.register("ternary_mean")
class TernaryMean(WeightQuantizer):
    """Scale mean|W| (BitNet b1.58, arXiv 2402.17764)."""

    levels = TERNARY

    def scale(self, rows: Tensor) -> Tensor:
        return self.backend.abs_means(rows)

    def at_once(self, weight: Tensor) -> Quantized:
        return Quantized(*self.backend.rounded_by_means(weight, self.scale_shape(weight), self.levels))


@WEIGHTS.register("ternary_median")
class TernaryMedian(WeightQuantizer):
    """Scale median|W|, the lower of two middle values (BitNet b1.58 Reloaded, arXiv 2407.09527)."""

    levels = TERNARY

    def scale(self, rows: Tensor) -> Tensor:
        return self.backend.abs_median(rows)

    def at_once(self, weight: Tensor) -> Quantized:
        return Quantized(*self.backend.rounded_by_medians(weight, self.scale_shape(weight), self.levels))


@WEIGHTS.register("stochastic_ternary")
class StochasticTernary(TernaryMean):
    """Scale mean|W|; in training |W| / scale is the probability of +-1, up to 1 (arXiv 2411.05882).

    In evaluation, and frozen, weights are rounded to the nearest as by `ternary_mean`.
    """

    def sampled(self, rows: Tensor, scale: Tensor) -> Tensor:
        return rows.sign() * (rows.abs() > scale * torch.rand_like(rows))


@WEIGHTS.register("twn")
class TernaryWeightNetwork(WeightQuantizer):
    """Zero up to a share of mean|W|; the scale is the mean of |W| beyond (arXiv 1605.04711, eq. 5 and 6).

    Args:
        threshold: in units of mean|W|; 0.7 in the paper's first version, 0.75 in later ones.
    """

    levels = TERNARY

    def __init__(
        self,
        weight: Tensor,
        *,
        threshold: float = 0.7,
        granularity: Granularity = "channel",
        group_size: int | None = None,
    ) -> None:
        super().__init__(weight, granularity=granularity, group_size=group_size)
        if not threshold > 0:
            raise ValueError(f"threshold={threshold} must be above 0")
        self.threshold = threshold

    def beyond(self, rows: Tensor) -> Tensor:
        """Where weights are other than zero."""
        return rows.abs() > self.threshold * self.backend.abs_means(rows)

    def scale(self, rows: Tensor) -> Tensor:
        return mean_where(rows.abs(), self.beyond(rows))

    def codes(self, rows: Tensor, scale: Tensor) -> Tensor:
        return rows.sign() * self.beyond(rows)


@WEIGHTS.register("tequila")
class Tequila(TernaryMean):
    """`ternary_mean` whose zero weights act as a bias: outputs get a share of their sum (arXiv 2509.23809).

    So weights that are stuck at zero have a gradient of their own, that of the outputs. The constant is
    added to the bias when a layer is frozen.

    Args:
        share: the paper's lambda.
    """

    has_output_offset = True
    at_once = TernaryMean.at_once

    def __init__(
        self,
        weight: Tensor,
        *,
        share: float = 1e-3,
        granularity: Granularity = "channel",
        group_size: int | None = None,
    ) -> None:
        super().__init__(weight, granularity=granularity, group_size=group_size)
        if not share >= 0:
            raise ValueError(f"share={share} must not be below 0")
        self.share = share

    def output_offset(self, weight: Tensor, codes: Tensor) -> Tensor:
        return self.share * row_sums((weight.float() * (codes == 0)).flatten(1))[:, 0]
