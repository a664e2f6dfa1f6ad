"""Linear maps of the features before quantization."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from bitexp.quant.norms import features_back, features_last
from bitexp.quant.parts import TRANSFORMS, Transform


@TRANSFORMS.register("hadamard")
class Hadamard(Transform):
    """The orthogonal Walsh-Hadamard transform, which spreads outliers (BitNet v2, arXiv 2504.18415).

    Features are taken in blocks of the largest power of two that divides them, or of `block`.

    Args:
        applies_to: `activations` alone, as BitNet v2, or `both`: then the weights are rotated alike before
            they are
            quantized, which leaves the product what it was.
        block: a power of two that divides the features; None for the largest.
    """

    def __init__(
        self, *, applies_to: Literal["activations", "both"] = "activations", block: int | None = None
    ) -> None:
        super().__init__()
        if applies_to not in ("activations", "both"):
            raise ValueError(f"applies_to={applies_to} should be 'activations' or 'both'")
        if block is not None and (block < 2 or block & (block - 1)):
            raise ValueError(f"block={block} must be a power of two, at least 2")
        self.on_weights, self.block = applies_to == "both", block

    def forward(self, x: Tensor, dim: int) -> Tensor:
        size = x.shape[dim]
        block = self.block or size & -size
        if size % block:
            raise ValueError(f"block={block} does not divide the {size} features of a layer")
        rotated: Tensor = Rotation.apply(features_last(x, dim), block)
        return features_back(rotated, dim)


class Rotation(torch.autograd.Function):
    """`hadamard` as one node of the graph; it is its own adjoint."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, block: int) -> Tensor:
        return hadamard(x, block)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.block = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return Rotation.apply(grad, ctx.block), None


def hadamard(x: Tensor, block: int) -> Tensor:
    """`x @ H / sqrt(block)` along blocks of the last dimension, H of Sylvester's order.

    Always by butterflies of distance 1, 2, 4, ... and one multiplication at the end: any other order has
    other last bits, and training and deployment have to agree.
    """
    shape, distance = x.shape, 1
    while distance < block:
        pairs = x.reshape(-1, 2, distance)
        x = torch.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), 1)
        distance *= 2
    return x.reshape(shape) * block**-0.5
