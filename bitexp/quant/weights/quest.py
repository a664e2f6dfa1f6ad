"""QuEST's weights."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from bitexp.quant.gaussian import gaussian_scale, levels_of, odd_codes
from bitexp.quant.parts import WEIGHTS, WeightQuantizer


@WEIGHTS.register("quest")
class QuestWeights(WeightQuantizer):
    """Levels that are best for a normal distribution, by the root mean square of a row (arXiv 2502.05003).

    The paper's method is this with `estimator: trust`, which trusts a gradient where a weight is no further
    from its level than half the distance of two, and with `transform: {name: hadamard, applies_to: both}`.

    Args:
        bits: 1 to 7; 2^bits levels, of which zero is none.
    """

    def __init__(
        self, weight: Tensor, *, bits: int = 4, granularity: Literal["tensor", "channel"] = "channel"
    ) -> None:
        super().__init__(weight, granularity=granularity)
        self.levels, self.bits = levels_of(bits), bits

    def scale(self, rows: Tensor) -> Tensor:
        return gaussian_scale(rows, int(self.bits or 1), (-1,))

    def codes(self, rows: Tensor, scale: Tensor) -> Tensor:
        return odd_codes(rows, scale, self.levels)
