"""Integers of 2 to 8 bits by the largest weight."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bitexp.quant.levels import Levels
from bitexp.quant.parts import WEIGHTS, WeightQuantizer
from bitexp.quant.spec import EPS, Granularity
from bitexp.quant.sums import row_sums

SHARES = [(20 - passed) / 20 for passed in range(20)]


@WEIGHTS.register("int")
class Int(WeightQuantizer):
    """Symmetric uniform codes; the scale puts the largest |W| on the highest (arXiv 2212.09720).

    Args:
        bits: 2 to 8. Each level has its negative, so one code is not used: 2 bits are ternary by the
            largest weight.
        range: `absmax`, or `mse`: of twenty shares of that scale, 1, 0.95 ... 0.05, the one with the least
            squared error, which takes twenty passes over the weights in every forward.
    """

    later = frozenset({"range"})

    def __init__(
        self,
        weight: Tensor,
        *,
        bits: int = 4,
        granularity: Granularity = "channel",
        group_size: int | None = None,
        range: Literal["absmax", "mse"] = "absmax",
    ) -> None:
        super().__init__(weight, granularity=granularity, group_size=group_size)
        if not 2 <= bits <= 8:
            raise ValueError(f"bits={bits} must be from 2 to 8")
        if range not in ("absmax", "mse"):
            raise ValueError(f"range={range} should be 'absmax' or 'mse'")
        self.levels, self.bits, self.range = Levels.symmetric(bits), bits, range

    def scale(self, rows: Tensor) -> Tensor:
        absmax = rows.abs().amax(-1, keepdim=True) / self.levels.high
        return absmax if self.range == "absmax" else self.least_error(rows, absmax)

    def least_error(self, rows: Tensor, absmax: Tensor) -> Tensor:
        """The share of a scale `[rows, 1]` with the least squared error; of equal ones the largest."""
        best, least = absmax, torch.full_like(absmax, torch.inf)
        for share in SHARES:
            scale = (absmax * share).clamp(min=EPS)
            error = row_sums((self.codes(rows, scale) * scale - rows).square())
            best = torch.where(error < least, scale, best)
            least = torch.minimum(error, least)
        return best
