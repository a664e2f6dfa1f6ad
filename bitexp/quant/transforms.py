"""Linear maps of the features before quantization."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitexp.quant.norms import features_back, features_last
from bitexp.quant.parts import TRANSFORMS, Transform
from bitexp.quant.rank_one import rank_one
from bitexp.quant.spec import LayerSpec


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


@TRANSFORMS.register("columns")
class Columns(Transform):
    """A learned factor for each input feature, and with `shift` a learned constant for its weights.

    OneBit's g (arXiv 2402.11295), and FBI-LLM's alpha and beta (arXiv 2407.07093, eq. 3), which belong
    to columns of the weights: `sum_k (alpha_k codes_k + beta_k) x_k` is the sum of codes times `alpha x`, and
    of `beta . x`, which is the same for all outputs and stays in floats.

    Args:
        init: of the factors, `one`; `mean`, the mean |W - mean W| of a column; or `svid`, those of the best
            approximation of |W| by factors for rows and columns (OneBit, eq. 5).
        shift: whether there are constants; they begin with the mean of a column.
    """

    def __init__(
        self, features: int, *, init: Literal["one", "mean", "svid"] = "one", shift: bool = False
    ) -> None:
        super().__init__()
        if init not in ("one", "mean", "svid"):
            raise ValueError(f"init={init} should be 'one', 'mean' or 'svid'")
        self.init, self.has_addend = init, shift
        self.factor = nn.Parameter(torch.ones(features))
        if shift:
            self.constant = nn.Parameter(torch.zeros(features))

    @torch.no_grad()
    def initialize(self, weight: Tensor) -> None:
        columns = weight.float().transpose(0, 1).flatten(1)
        if len(columns) < len(self.factor):  # groups of a convolution have the same columns
            columns = columns.repeat(len(self.factor) // len(columns), 1)
        means = columns.mean(1)
        if self.has_addend:
            self.constant.copy_(means)
        if self.init == "mean":
            centred = columns - means[:, None] if self.has_addend else columns
            self.factor.copy_(centred.abs().mean(1))
        if self.init == "svid":
            factor = rank_one(weight)[1]
            self.factor.copy_(factor.repeat(len(self.factor) // len(factor)))

    def forward(self, x: Tensor, dim: int) -> Tensor:
        return x * self.per_feature(self.factor)

    def addend(self, x: Tensor, spec: LayerSpec) -> Tensor:
        if spec.conv is None:
            return (x * self.constant).sum(-1, keepdim=True)
        stride, padding, dilation, groups = spec.conv
        kernel = self.constant.reshape(groups, -1, 1, 1).expand(groups, *spec.shape[1:])
        y = F.conv2d(x, kernel, None, stride, padding, dilation, groups)
        return y.repeat_interleave(spec.shape[0] // groups, -3)


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
