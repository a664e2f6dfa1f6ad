"""QuEST's activations."""

from __future__ import annotations

from torch import Tensor

from bitexp.quant.estimators.clipped import Trust
from bitexp.quant.gaussian import gaussian_scale, levels_of, odd_codes
from bitexp.quant.parts import ACTIVATIONS, ActivationQuantizer
from bitexp.quant.spec import ActivationSpec, Part


@ACTIVATIONS.register("quest")
class QuestActivations(ActivationQuantizer):
    """Levels that are best for a normal distribution, by the root mean square of a token (arXiv 2502.05003).

    The gradient is trusted where an input is no further from its level than half the distance of two levels.

    Args:
        bits: 1 to 7; 2^bits levels, of which zero is none.
    """

    def __init__(self, *, bits: int = 4) -> None:
        super().__init__(ActivationSpec(Part("quest", {"bits": bits}), levels_of(bits)))
        self.bits, self.estimator = bits, Trust()

    def codes(self, x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        scale = gaussian_scale(x, self.bits, dims)
        return odd_codes(x, scale, self.spec.levels), scale
