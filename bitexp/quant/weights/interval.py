"""EWGS's weights: a learned interval, and a learned factor outside of it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from bitexp.quant.levels import Levels
from bitexp.quant.parts import WEIGHTS, WeightQuantizer
from bitexp.quant.per_row import spread, summed
from bitexp.quant.product import Quantized
from bitexp.quant.spec import EPS
from bitexp.quant.sums import row_means


@WEIGHTS.register("interval")
class Interval(WeightQuantizer):
    """`factor (2 round(high u) / high - 1)` with `u = clamp((W - lower) / (upper - lower), 0, 1)`.

    Both ends and the factor are learned. The gradient through the rounding is larger where it moves a value
    to its level, `g (1 + delta sign(g) (u - u_q))`; beyond the ends weights have none (EWGS, arXiv
    2104.00903, eq. 1-4 and 8). The ends begin three root mean squares from zero, and the factor so that the
    mean magnitude stays what it is.

    Args:
        bits: 1 to 7; the codes are odd.
        delta: the paper's fixed one; its other way, by the trace of the Hessian, is not here. 0 is straight
            through.
        granularity: one interval per tensor, as the paper has it, or per output channel.
    """

    def __init__(
        self,
        weight: Tensor,
        *,
        bits: int = 4,
        delta: float = 0.001,
        granularity: Literal["tensor", "channel"] = "tensor",
    ) -> None:
        super().__init__(weight, granularity=granularity)
        if not 1 <= bits <= 7:
            raise ValueError(f"bits={bits} must be from 1 to 7")
        if delta < 0:
            raise ValueError(f"delta={delta} must not be negative")
        self.levels, self.delta = Levels.odd(bits), delta
        rows, shape = self.rows(weight)
        reach = 3 * row_means(rows.square()).sqrt().clamp(min=EPS)
        self.lower, self.upper = (nn.Parameter(end.reshape(shape)) for end in (-reach, reach.clone()))
        values = self.codes(rows, reach).abs() / self.levels.high
        factor = row_means(rows.abs()).clamp(min=EPS) / row_means(values).clamp(min=EPS)
        self.factor = nn.Parameter(factor.reshape(shape))

    def scale(self, rows: Tensor) -> Tensor:
        scale = self.factor.detach().abs().reshape(-1, 1) / self.levels.high
        return scale.where(rows.isfinite().all(-1, keepdim=True), torch.nan)

    def unit(self, rows: Tensor) -> Tensor:
        """Where weights lie in the interval: 0 and 1 are its ends."""
        lower, upper = (end.detach().reshape(-1, 1) for end in (self.lower, self.upper))
        return (rows - lower) / (upper - lower).clamp(min=EPS)

    def codes(self, rows: Tensor, scale: Tensor) -> Tensor:
        high = self.levels.high
        return 2 * (self.unit(rows).clamp(0, 1) * high).round() - high

    def gradients(
        self, grad: Tensor, weight: Tensor, quantized: Quantized, *learned: Tensor
    ) -> tuple[Tensor, ...]:
        lower, upper, factor = learned
        rows, _ = self.rows(weight)
        unit, values = self.unit(rows).reshape(weight.shape), quantized.codes / self.levels.high
        of_unit = 2 * grad * spread(factor.abs(), weight)
        of_unit = of_unit * (1 + self.delta * of_unit.sign() * (unit.clamp(0, 1) - (values + 1) / 2))
        width = spread((upper - lower).clamp(min=EPS), weight)
        of_weight = of_unit * ((unit >= 0) & (unit <= 1)) / width
        of_lower, of_upper = (summed(of_weight * slope, lower) for slope in (unit - 1, -unit))
        return of_weight, of_lower, of_upper, summed(grad * values, factor) * factor.sign()
