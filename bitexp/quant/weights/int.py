"""Integers of 2 to 8 bits by the largest weight."""

from __future__ import annotations

from torch import Tensor

from bitexp.quant.levels import Levels
from bitexp.quant.parts import WEIGHTS, WeightQuantizer
from bitexp.quant.spec import Granularity


@WEIGHTS.register("int")
class Int(WeightQuantizer):
    """Symmetric uniform codes; the scale puts the largest |W| on the highest (arXiv 2212.09720).

    Args:
        bits: 2 to 8. Each level has its negative, so one code is not used: 2 bits are ternary by the
            largest weight.
    """

    def __init__(
        self,
        weight: Tensor,
        *,
        bits: int = 4,
        granularity: Granularity = "channel",
        group_size: int | None = None,
    ) -> None:
        super().__init__(weight, granularity=granularity, group_size=group_size)
        if not 2 <= bits <= 8:
            raise ValueError(f"bits={bits} must be from 2 to 8")
        self.levels, self.bits = Levels.symmetric(bits), bits

    def scale(self, rows: Tensor) -> Tensor:
        return rows.abs().amax(-1, keepdim=True) / self.levels.high
