"""Learned step size quantization (LSQ)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from bitexp.quant.levels import Levels
from bitexp.quant.parts import WEIGHTS, WeightQuantizer
from bitexp.quant.per_row import spread, summed
from bitexp.quant.product import Quantized
from bitexp.quant.spec import EPS
from bitexp.quant.sums import ordered_means


@WEIGHTS.register("lsq")
class LSQ(WeightQuantizer):
    """Uniform codes whose scale, LSQ's *step size*, is learned (arXiv 1902.08153, eq. 1-3 and section 2.2).

    A clipped weight gets no gradient. The step size gets, of each weight, `round(w/s) - w/s` inside the
    range and the clipping level outside, times `1 / sqrt(weights * high)`, which keeps its updates in
    proportion.

    Args:
        bits: 2 to 8, two's complement: 2 bits are -2, -1, 0, 1.
        granularity: one step size per tensor, as the paper has it, or per output channel, as ParetoQ
            (arXiv 2502.02631) has it.
        init: `mean`, `2 mean|W| / sqrt(high)` as the paper has it, or `absmax`, `max|W| / high` as ParetoQ
            has it.
    """

    def __init__(
        self,
        weight: Tensor,
        *,
        bits: int = 4,
        granularity: Literal["tensor", "channel"] = "channel",
        init: Literal["mean", "absmax"] = "mean",
    ) -> None:
        super().__init__(weight, granularity=granularity)
        if not 2 <= bits <= 8:
            raise ValueError(f"bits={bits} must be from 2 to 8")
        self.levels, self.bits = Levels.signed(bits), bits
        rows, shape = self.rows(weight)
        if init == "mean":
            initial = 2 * ordered_means(rows.abs())[:, 0] / self.levels.high**0.5
        elif init == "absmax":
            initial = rows.abs().amax(-1) / self.levels.high
        else:
            raise ValueError(f"init={init} should be 'mean' or 'absmax'")
        self.step_size = nn.Parameter(initial.clamp(min=EPS).reshape(shape))

    def scale(self, rows: Tensor) -> Tensor:
        return self.step_size.detach().reshape(-1, 1)

    def gradients(
        self, grad: Tensor, weight: Tensor, quantized: Quantized, *learned: Tensor
    ) -> tuple[Tensor, ...]:
        return step_size_gradients(grad, weight, quantized, self.levels)


def step_size_gradients(
    grad: Tensor, weight: Tensor, quantized: Quantized, levels: Levels
) -> tuple[Tensor, Tensor]:
    """With respect to the latent weights, and to the step sizes that are the scales."""
    # of second order nothing is left: that of w/s cancels that of round
    ratio = weight.detach() / spread(quantized.scale, weight)
    inside = (ratio >= levels.low) & (ratio <= levels.high)
    slope = torch.where(inside, quantized.codes - ratio, quantized.codes.to(ratio.dtype))
    return grad * inside, summed(grad * slope, quantized.scale) / (weight.numel() * levels.high) ** 0.5
