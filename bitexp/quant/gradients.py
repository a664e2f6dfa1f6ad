"""Gradients of few bits: what the two products of a layer's backward see of the gradient of its output.

Noise is drawn from torch's global generator, which a run seeds anew before every batch, so that a run that
resumes draws the same.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bitexp.quant.parts import GRADIENTS, GradientQuantizer


@GRADIENTS.register("dorefa")
class DoReFaGradients(GradientQuantizer):
    """Uniform levels over a sample's range, with noise of half a level (arXiv 1606.06160).

    Args:
        bits: 2 to 8.
    """

    def __init__(self, *, bits: int = 6) -> None:
        super().__init__()
        if not 2 <= bits <= 8:
            raise ValueError(f"bits={bits} must be from 2 to 8")
        self.levels = 2**bits - 1

    def forward(self, grad: Tensor) -> Tensor:
        if not grad.numel():  # an empty batch has no largest gradient
            return grad
        dims = tuple(range(1, grad.dim())) or (0,)
        span = 2 * grad.abs().amax(dims, keepdim=True)
        span = torch.where(span > 0, span, 1.0)
        noise = (torch.rand_like(grad) - 0.5) / self.levels
        share = (grad / span + 0.5 + noise).clamp(0, 1)
        return span * ((share * self.levels).round() / self.levels - 0.5)


@GRADIENTS.register("int")
class IntGradients(GradientQuantizer):
    """Symmetric integers by the largest gradient, rounded at random: right on average (arXiv 2207.08822).

    Args:
        bits: 2 to 8.
        over: what shares a scale, a `token` (for convolutions a sample) or the `tensor`.
    """

    def __init__(self, *, bits: int = 8, over: Literal["token", "tensor"] = "token") -> None:
        super().__init__()
        if not 2 <= bits <= 8:
            raise ValueError(f"bits={bits} must be from 2 to 8")
        if over not in ("token", "tensor"):
            raise ValueError(f"over={over} should be 'token' or 'tensor'")
        self.highest, self.over = 2 ** (bits - 1) - 1, over

    def forward(self, grad: Tensor) -> Tensor:
        if not grad.numel():
            return grad
        token = (-1,) if self.feature_dim == -1 else (-3, -2, -1)
        dims = token if self.over == "token" else tuple(range(grad.dim()))
        largest = grad.abs().amax(dims, keepdim=True)
        scale = torch.where(largest > 0, largest, 1.0) / self.highest
        return (grad / scale + torch.rand_like(grad)).floor().clamp(-self.highest, self.highest) * scale
