"""ParetoQ's quantizers for 1, 1.58 and 2 bits: signs, and levels around zero, by a range that is learned."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from bitexp.quant.levels import BINARY, TERNARY, Levels
from bitexp.quant.parts import WEIGHTS, WeightQuantizer
from bitexp.quant.per_row import spread, summed
from bitexp.quant.product import Quantized
from bitexp.quant.spec import EPS
from bitexp.quant.sums import ordered_means


class LearnedRange(WeightQuantizer):
    """A quantizer that learns `alpha`, one per tensor or output channel, from an initial value on.

    The gradient of alpha is that at the weights times a slope, summed, times `1 / sqrt(weights)`.
    """

    def __init__(self, weight: Tensor, granularity: Literal["tensor", "channel"]) -> None:
        super().__init__(weight, granularity=granularity)
        rows, shape = self.rows(weight)
        self.alpha = nn.Parameter(self.initial(rows).clamp(min=EPS).reshape(shape))

    def initial(self, rows: Tensor) -> Tensor:
        """alpha at the start: `[rows, weights] -> [rows, 1]`."""
        raise NotImplementedError

    @property
    def range(self) -> Tensor:
        """alpha for each row, `[rows, 1]`, at least the floor of scales."""
        return self.alpha.detach().clamp(min=EPS).reshape(-1, 1)

    def ratio(self, weight: Tensor, alpha: Tensor) -> Tensor:
        """The weights in units of their range; of second order nothing goes through it."""
        return weight.detach() / spread(alpha.detach().clamp(min=EPS), weight)

    def of_alpha(self, grad: Tensor, slope: Tensor, alpha: Tensor) -> Tensor:
        """The gradient of alpha."""
        return summed(grad * slope, alpha) / grad.numel() ** 0.5


@WEIGHTS.register("elastic_binary")
class ElasticBinary(LearnedRange):
    """Signs times a learned scale alpha, sign(0) = +1 (ParetoQ's 1 bit, arXiv 2502.02631).

    Weights beyond alpha get no gradient; alpha gets `sign(w)` of each.

    Args:
        granularity: one alpha per output channel, as the paper has it, or per tensor.
    """

    levels = BINARY

    def __init__(self, weight: Tensor, *, granularity: Literal["tensor", "channel"] = "channel") -> None:
        super().__init__(weight, granularity)

    def initial(self, rows: Tensor) -> Tensor:
        return ordered_means(rows.abs())

    def scale(self, rows: Tensor) -> Tensor:
        return self.range

    def codes(self, rows: Tensor, scale: Tensor) -> Tensor:
        return torch.where(rows >= 0, 1.0, -1.0)

    def gradients(
        self, grad: Tensor, weight: Tensor, quantized: Quantized, *learned: Tensor
    ) -> tuple[Tensor, ...]:
        inside = self.ratio(weight, learned[0]).abs() <= 1
        return grad * inside, self.of_alpha(grad, quantized.codes, learned[0])


@WEIGHTS.register("seq")
class Seq(LearnedRange):
    """Stretched elastic quantization: levels that halve the range evenly (ParetoQ, arXiv 2502.02631).

    With `r = clamp(w / alpha, -0.99, 0.99)`, 1.58 bits are `alpha round(1.5 r) / 1.5`, codes -1, 0, 1, and
    2 bits `alpha (round(2 r - 1/2) + 1/2) / 2`, codes -3, -1, 1, 3. Weights beyond 0.99 alpha get no
    gradient; alpha gets `q - w/alpha` inside, where `q` is the quantized weight in units of alpha, and
    outside +-0.75 at 2 bits and +-1 at 1.58, as in the authors' code, though the level there is 2/3.

    Args:
        bits: 1.58 or 2.
        granularity: one alpha per output channel, as the paper has it, or per tensor.
    """

    CLIP = 0.99

    def __init__(
        self, weight: Tensor, *, bits: float = 2, granularity: Literal["tensor", "channel"] = "channel"
    ) -> None:
        if bits not in (1.58, 2):
            raise ValueError(f"bits={bits:g} must be 1.58 or 2")
        super().__init__(weight, granularity)
        ternary = bits != 2
        self.levels = TERNARY if ternary else Levels.odd(2)
        self.factor, self.outside = (2 / 3, 1.0) if ternary else (1 / 4, 0.75)

    def initial(self, rows: Tensor) -> Tensor:
        return rows.abs().amax(-1, keepdim=True)

    def scale(self, rows: Tensor) -> Tensor:
        return self.range * self.factor

    def codes(self, rows: Tensor, scale: Tensor) -> Tensor:
        ratio = (rows / self.range).clamp(-self.CLIP, self.CLIP)
        if self.levels == TERNARY:
            return (1.5 * ratio).round()
        return 2 * (2 * ratio - 0.5).round() + 1

    def gradients(
        self, grad: Tensor, weight: Tensor, quantized: Quantized, *learned: Tensor
    ) -> tuple[Tensor, ...]:
        ratio = self.ratio(weight, learned[0])
        inside = ratio.abs() <= self.CLIP
        slope = torch.where(inside, quantized.codes * self.factor - ratio, self.outside * ratio.sign())
        return grad * inside, self.of_alpha(grad, slope, learned[0])
