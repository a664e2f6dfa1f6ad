"""Signs around the mean."""

from __future__ import annotations

import torch
from torch import Tensor

from bitexp.quant.quantizer import QUANTIZERS, Quantizer


@QUANTIZERS.register("binary")
class Binary(Quantizer):
    """Signs around the mean, sign(0) = -1; step mean|W| (BitNet, arXiv 2310.11453, eq. 1-3 and 11)."""

    bits = 1
    low, high = -1, 1

    def step(self, rows: Tensor) -> Tensor:
        return rows.abs().mean(-1, keepdim=True)

    def codes(self, rows: Tensor, step: Tensor) -> Tensor:
        return torch.where(rows > rows.mean(-1, keepdim=True), 1.0, -1.0)
