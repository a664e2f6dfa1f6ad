"""DoReFa-Net's weights: evenly spaced between -1 and 1, after a tanh."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bitexp.quant.levels import Levels
from bitexp.quant.parts import WEIGHTS, WeightQuantizer
from bitexp.quant.per_row import spread
from bitexp.quant.product import Quantized
from bitexp.quant.spec import EPS


@WEIGHTS.register("dorefa")
class DoReFa(WeightQuantizer):
    """Odd codes `2 round((2^k - 1) (t + 1) / 2) - (2^k - 1)` of `t = tanh(w) / max|tanh w|`.

    They stand for -1 to 1, so the scale is `1 / (2^k - 1)`. The gradient goes through the tanh and stops at
    the maximum. One bit is `sign(w) mean|W|` with sign(0) = +1 and the identity as its gradient
    (arXiv 1606.06160, eq. 5-9).

    Args:
        bits: 1 to 7; the codes of 8 bits are no int8.
        granularity: one maximum (at one bit: mean) per tensor, as the paper has it, or per output channel.
    """

    def __init__(
        self, weight: Tensor, *, bits: int = 2, granularity: Literal["tensor", "channel"] = "tensor"
    ) -> None:
        super().__init__(weight, granularity=granularity)
        if not 1 <= bits <= 7:
            raise ValueError(f"bits={bits} must be from 1 to 7")
        self.levels, self.steps = Levels.odd(bits), 2**bits - 1
        self.ruled = bits > 1  # codes are those of the tanh

    def scale(self, rows: Tensor) -> Tensor:
        if self.steps == 1:
            return self.backend.abs_means(rows)
        constant = torch.full_like(rows[:, :1], 1 / self.steps)
        return constant.where(rows.isfinite().all(-1, keepdim=True), torch.nan)

    def codes(self, rows: Tensor, scale: Tensor) -> Tensor:
        if self.steps == 1:
            return torch.where(rows >= 0, 1.0, -1.0)
        tanh = rows.tanh()
        normed = tanh / (2 * tanh.abs().amax(-1, keepdim=True).clamp(min=EPS)) + 0.5
        return 2 * (self.steps * normed).round() - self.steps

    def gradients(
        self, grad: Tensor, weight: Tensor, quantized: Quantized, *learned: Tensor
    ) -> tuple[Tensor, ...]:
        if self.steps == 1:
            return (grad,)
        tanh = weight.tanh()
        rows, shape = self.rows(tanh)
        largest = rows.abs().amax(-1).clamp(min=EPS).reshape(shape)
        return (grad * (1 - tanh.square()) / spread(largest, weight),)
