"""Ternary weights of which some are zero by rule: the smallest of every few inputs."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bitexp.quant.levels import TERNARY, Levels
from bitexp.quant.parts import WEIGHTS, WeightQuantizer
from bitexp.quant.per_row import mean_where
from bitexp.quant.sparsifiers import largest
from bitexp.quant.spec import Granularity


def kept(rows: Tensor, inputs: int, keep: int, block: int) -> Tensor:
    """Where weights are among the `keep` largest of their block along the inputs; among equals the first.

    A last block that is short keeps as many, at most all it has.
    """
    magnitudes = rows.abs().reshape(-1, inputs)
    # what is filled up is smaller than any weight
    blocks = F.pad(magnitudes, (0, -inputs % block), value=-1.0).unflatten(-1, (-1, block))
    return largest(blocks, keep).flatten(-2)[:, :inputs].reshape(rows.shape)


def check_blocks(block: int, group_size: int | None) -> None:
    """Raises `ValueError` where groups of inputs cut blocks."""
    if group_size is not None and group_size % block:
        raise ValueError(f"group_size={group_size} must be a multiple of {block}, so that no block is cut")


@WEIGHTS.register("sparse_ternary")
class SparseTernary(WeightQuantizer):
    """`ternary_mean`, zero but for the largest weights of every block (Sparse-BitNet, arXiv 2603.05168).

    Scale and codes are those of the dense weights, the mask is made anew in every forward, and the gradient
    passes to all weights.

    Args:
        keep, block: `keep` of every `block` inputs may be other than zero.
    """

    levels = TERNARY
    ruled = True

    def __init__(
        self,
        weight: Tensor,
        *,
        keep: int = 6,
        block: int = 8,
        granularity: Granularity = "tensor",
        group_size: int | None = None,
    ) -> None:
        super().__init__(weight, granularity=granularity, group_size=group_size)
        if not 1 <= keep <= block:
            raise ValueError(f"keep={keep} must be from 1 to block={block}")
        check_blocks(block, group_size)
        self.keep, self.block, self.density = keep, block, keep / block
        patterns = sum(math.comb(block, filled) * 2**filled for filled in range(keep + 1))
        self.bits = math.log2(patterns) / block

    def scale(self, rows: Tensor) -> Tensor:
        return self.backend.abs_means(rows)

    def codes(self, rows: Tensor, scale: Tensor) -> Tensor:
        return super().codes(rows, scale) * kept(rows, self.inputs, self.keep, self.block)


@WEIGHTS.register("sherry")
class Sherry(WeightQuantizer):
    """Of every four inputs the smallest is zero, the others are signs, sign(0) = +1 (arXiv 2601.07892).

    The scale is the mean of |W| that is kept, and the gradient passes to all weights. Four weights take
    five bits. "Arenas": in training a share of the product with the latent weights is added, which rises
    from 0 to `arenas` in the first tenth of the training and falls to 0 by a half cosine.

    Args:
        arenas: the largest share; the paper has 1.
    """

    share: Tensor

    KEEP, BLOCK, WARMUP = 3, 4, 0.1
    levels = Levels.of_words(
        (*signs[:zero], 0, *signs[zero:])
        for zero in range(4)
        for signs in itertools.product((-1, 1), repeat=3)
    )
    density = KEEP / BLOCK
    progressive = True

    def __init__(
        self,
        weight: Tensor,
        *,
        arenas: float = 1.0,
        granularity: Granularity = "channel",
        group_size: int | None = None,
    ) -> None:
        super().__init__(weight, granularity=granularity, group_size=group_size)
        if not arenas >= 0:
            raise ValueError(f"arenas={arenas} must not be below 0")
        check_blocks(self.BLOCK, group_size)
        self.arenas, self.adding = arenas, False
        # a tensor, so that a compiled model need not be compiled anew at every step
        self.register_buffer("share", torch.zeros((), device=weight.device), persistent=False)

    def kept(self, rows: Tensor) -> Tensor:
        """Where weights are signs."""
        return kept(rows, self.inputs, self.KEEP, self.BLOCK)

    def scale(self, rows: Tensor) -> Tensor:
        return mean_where(rows.abs(), self.kept(rows))

    def codes(self, rows: Tensor, scale: Tensor) -> Tensor:
        return torch.where(rows >= 0, 1.0, -1.0) * self.kept(rows)

    def set_progress(self, share: float) -> None:
        super().set_progress(share)
        if share < self.WARMUP:
            added = self.arenas * share / self.WARMUP
        else:
            passed = min(1.0, (share - self.WARMUP) / (1 - self.WARMUP))
            added = self.arenas * 0.5 * (1 + math.cos(math.pi * passed))
        self.adding = added > 0
        self.share.fill_(added)

    def latent_share(self) -> Tensor | None:
        return self.share if self.adding else None
