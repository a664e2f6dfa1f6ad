"""A clip by two statistics of the weights (SAWB)."""

from __future__ import annotations

import torch
from torch import Tensor

from bitexp.quant.gaussian import odd_codes
from bitexp.quant.levels import Levels
from bitexp.quant.parts import WEIGHTS, WeightQuantizer
from bitexp.quant.product import Quantized
from bitexp.quant.spec import Granularity
from bitexp.quant.sums import row_means

COEFFICIENTS = {2: (3.12, 2.064), 3: (7.509, 6.892), 4: (12.68, 12.80), 5: (17.74, 18.64)}
"""By bits: how the clip with the least squared error follows from root mean square and mean magnitude."""


@WEIGHTS.register("sawb")
class SAWB(WeightQuantizer):
    """Odd codes, even parts of `[-clip, clip]` with `clip = c1 sqrt(mean W^2) - c2 mean|W|`.

    c1 and c2 were fitted to the best clips for six distributions (statistics-aware weight binning, arXiv
    1807.06964); where that is not above zero, the clip is max|W|. What is clipped has no gradient.

    Args:
        bits: 2 to 5.
    """

    def __init__(
        self,
        weight: Tensor,
        *,
        bits: int = 2,
        granularity: Granularity = "channel",
        group_size: int | None = None,
    ) -> None:
        super().__init__(weight, granularity=granularity, group_size=group_size)
        if bits not in COEFFICIENTS:
            raise ValueError(f"bits={bits} must be from 2 to 5")
        self.levels, self.coefficients = Levels.odd(bits), COEFFICIENTS[bits]

    def scale(self, rows: Tensor) -> Tensor:
        c1, c2 = self.coefficients
        clip = c1 * row_means(rows.square()).sqrt() - c2 * row_means(rows.abs())
        largest = rows.abs().amax(-1, keepdim=True)
        return torch.where(clip <= 0, largest, clip) / self.levels.high

    def codes(self, rows: Tensor, scale: Tensor) -> Tensor:
        return odd_codes(rows, scale, self.levels)

    def gradients(
        self, grad: Tensor, weight: Tensor, quantized: Quantized, *learned: Tensor
    ) -> tuple[Tensor, ...]:
        return (grad * (weight.abs() <= self.levels.high * quantized.spread_scale()),)
