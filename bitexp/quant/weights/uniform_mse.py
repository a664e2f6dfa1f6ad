"""Uniform levels of 1 to 8 bits with the least squared error: one rule for every width."""

from __future__ import annotations

import torch
from torch import Tensor

from bitexp.quant.gaussian import CLIPS
from bitexp.quant.levels import TERNARY, Levels
from bitexp.quant.parts import WEIGHTS, WeightQuantizer
from bitexp.quant.spec import EPS, Granularity
from bitexp.quant.sums import row_means, row_sums

GAUSSIAN = {float(bits): clip for bits, clip in CLIPS.items()} | {
    1.58: 1.2240063590656207,
    8: 3.920500685154943,
}
"""By bits: the highest level, in root mean squares, that is best for a normal distribution."""
PASSES = 4


@WEIGHTS.register("uniform_mse")
class UniformMse(WeightQuantizer):
    """Codes `k` and a scale `s` that minimize `|W - s k|^2` of a row, found by Lloyd's method.

    Codes are the nearest to `W / s`, then `s = <W, k> / <k, k>`, in turns (J. Max 1960, for uniform levels),
    from two beginnings: the scale that is best for normal weights, and that which clips none. Of both the
    better is kept. 1 bit is thus sign times mean|W|.

    Args:
        bits: 1.58 (-1, 0, 1); 1 to 7, odd integers, 2^bits of them; or 8, -127 to 127.
    """

    def __init__(
        self,
        weight: Tensor,
        *,
        bits: float = 4,
        granularity: Granularity = "channel",
        group_size: int | None = None,
    ) -> None:
        super().__init__(weight, granularity=granularity, group_size=group_size)
        if bits not in GAUSSIAN:
            raise ValueError(f"bits={bits:g} must be 1.58, or a whole number from 1 to 8")
        self.clip = GAUSSIAN[bits]
        if bits == 1.58:
            self.levels = TERNARY
        else:
            self.levels, self.bits = Levels.symmetric(8) if bits == 8 else Levels.odd(int(bits)), bits

    def scale(self, rows: Tensor) -> Tensor:
        normal = row_means(rows.square()).sqrt() * (self.clip / self.levels.high)
        if self.levels.count == 2:
            return self.refined(rows, normal, 1)[0]  # signs do not depend on the scale
        largest = rows.abs().amax(-1, keepdim=True) / self.levels.high
        (ours, error), (other, others) = (self.refined(rows, first, PASSES) for first in (normal, largest))
        return torch.where(error <= others, ours, other)

    def refined(self, rows: Tensor, scale: Tensor, passes: int) -> tuple[Tensor, Tensor]:
        """A scale `[rows, 1]` after some turns, and less what it saves of the squared error."""
        for _ in range(passes):
            codes = self.codes(rows, scale.clamp(min=EPS)).to(rows.dtype)
            met, power = row_sums(rows * codes), row_sums(codes.square()).clamp(min=1)
            scale = met / power
        return scale, -met * scale

    def codes(self, rows: Tensor, scale: Tensor) -> Tensor:
        if self.levels.stride == 1:
            return super().codes(rows, scale)
        odd = 2 * (rows * (0.5 / scale)).floor() + 1
        return odd.clamp_(self.levels.low, self.levels.high)
