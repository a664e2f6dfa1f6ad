"""Trained ternary quantization: a scale for the weights above zero, another for those below."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from bitexp.quant.levels import Levels
from bitexp.quant.parts import WEIGHTS, WeightQuantizer
from bitexp.quant.per_row import mean_where, spread, summed
from bitexp.quant.product import Quantized
from bitexp.quant.spec import EPS


@WEIGHTS.register("ttq")
class TTQ(WeightQuantizer):
    """`positive` above a threshold, `-negative` below its negative, else 0 (arXiv 1612.01064, section 3).

    Two planes: one holds the weights above zero, the other those below. A weight has the gradient at its
    quantized form times the scale of its side, or times 1 where it is zero; each scale has the sum of its
    side.

    Args:
        threshold: in units of max|W|.
        init: of the scales: `mean`, that of the weights on each side, or `one`, as in the public codes.
        granularity: one pair per tensor, as the paper has it, or per output channel.
    """

    levels = Levels.of_words([(0, 0), (1, 0), (0, -1)], planes=2)

    def __init__(
        self,
        weight: Tensor,
        *,
        threshold: float = 0.05,
        init: Literal["mean", "one"] = "mean",
        granularity: Literal["tensor", "channel"] = "tensor",
    ) -> None:
        super().__init__(weight, granularity=granularity)
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold={threshold} must be from 0 to below 1")
        if init not in ("mean", "one"):
            raise ValueError(f"init={init} should be 'mean' or 'one'")
        self.threshold = threshold
        rows, shape = self.rows(weight)
        for name, side in zip(("positive", "negative"), self.sides(rows), strict=True):
            initial = mean_where(rows.abs(), side).clamp(min=EPS)
            if init == "one":
                initial = torch.ones_like(initial)
            setattr(self, name, nn.Parameter(initial.reshape(shape)))

    positive: nn.Parameter
    negative: nn.Parameter

    def sides(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Where weights are above the threshold, and where below its negative."""
        threshold = self.threshold * rows.abs().amax(-1, keepdim=True)
        return rows > threshold, rows < -threshold

    def scale(self, rows: Tensor) -> Tensor:
        return torch.stack((self.positive, self.negative)).detach().reshape(2, -1, 1)

    def codes(self, rows: Tensor, scale: Tensor) -> Tensor:
        positive, negative = self.sides(rows)
        return torch.stack((positive.float(), -negative.float()))

    def gradients(
        self, grad: Tensor, weight: Tensor, quantized: Quantized, *learned: Tensor
    ) -> tuple[Tensor, ...]:
        positive, negative = quantized.codes.float()
        scales = [spread(scale.clamp(min=EPS), weight).detach() for scale in learned]
        factor = torch.where(positive > 0, scales[0], torch.where(negative < 0, scales[1], 1.0))
        return grad * factor, summed(grad * positive, learned[0]), summed(grad * negative, learned[1])
