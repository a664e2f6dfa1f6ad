"""A scale that stays what it was at the start."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from bitexp.quant.levels import TERNARY, Levels
from bitexp.quant.parts import WEIGHTS, WeightQuantizer
from bitexp.quant.spec import EPS
from bitexp.quant.sums import ordered_means


@WEIGHTS.register("fixed")
class Fixed(WeightQuantizer):
    """`round(W / scale)`; the scale is that of the initial weights (DQT, arXiv 2412.04787).

    For an optimizer that keeps the weights themselves at levels: a scale that followed them would move these.

    Args:
        bits: 1.58, ternary, with mean |W| for the scale; or 2 to 8, symmetric, with max |W| / highest level.
    """

    fixed_scale = True
    kept: Tensor

    def __init__(
        self, weight: Tensor, *, bits: float = 1.58, granularity: Literal["tensor", "channel"] = "tensor"
    ) -> None:
        super().__init__(weight, granularity=granularity)
        if bits != 1.58 and bits not in range(2, 9):
            raise ValueError(f"bits={bits} must be 1.58, or a whole number from 2 to 8")
        rows, shape = self.rows(weight)
        if bits == 1.58:
            self.levels, initial = TERNARY, ordered_means(rows.abs())[:, 0]
        else:
            self.levels, self.bits = Levels.symmetric(int(bits)), int(bits)
            initial = rows.abs().amax(-1) / self.levels.high
        self.register_buffer("kept", initial.clamp(min=EPS).reshape(shape).clone())

    def scale(self, rows: Tensor) -> Tensor:
        return self.kept.reshape(-1, 1)
