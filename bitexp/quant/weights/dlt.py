"""TernaryLLM's dual learnable ternarization: a scale and a shift, both learned."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from bitexp.quant.levels import TERNARY
from bitexp.quant.parts import WEIGHTS, WeightQuantizer
from bitexp.quant.per_row import summed
from bitexp.quant.product import Quantized
from bitexp.quant.spec import EPS
from bitexp.quant.sums import ordered_means
from bitexp.quant.weights.lsq import step_size_gradients


@WEIGHTS.register("dlt")
class DLT(WeightQuantizer):
    """`alpha clamp(round(w / alpha), -1, 1) + gamma` (TernaryLLM, arXiv 2406.07177).

    alpha has the gradient of LSQ's step size, gamma the sum of that at the weights. At the start alpha is
    mean|W| and gamma 0, which is `ternary_mean`.

    Args:
        granularity: one pair per output channel, as the paper has it, or per tensor.
    """

    levels = TERNARY
    has_shift = True

    def __init__(self, weight: Tensor, *, granularity: Literal["tensor", "channel"] = "channel") -> None:
        super().__init__(weight, granularity=granularity)
        rows, shape = self.rows(weight)
        self.alpha = nn.Parameter(ordered_means(rows.abs()).clamp(min=EPS).reshape(shape))
        self.gamma = nn.Parameter(torch.zeros_like(self.alpha))

    def scale(self, rows: Tensor) -> Tensor:
        return self.alpha.detach().reshape(-1, 1)

    def shift(self, rows: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        return self.gamma

    def gradients(
        self, grad: Tensor, weight: Tensor, quantized: Quantized, *learned: Tensor
    ) -> tuple[Tensor, ...]:
        return *step_size_gradients(grad, weight, quantized, self.levels), summed(grad, learned[1])
