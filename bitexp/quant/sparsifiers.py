"""Which inputs of a token count."""

from __future__ import annotations

import torch
from torch import Tensor

from bitexp.quant.norms import features_back, features_last
from bitexp.quant.parts import SPARSIFIERS, Sparsifier


@SPARSIFIERS.register("top_k")
class TopK(Sparsifier):
    """Keeps the largest inputs by magnitude; the gradient passes to all of them (Q-Sparse, arXiv 2407.10969).

    Equal magnitudes are kept from the lowest index on, so that the choice is the same everywhere.

    Args:
        keep: share of the inputs that count, of each token or of each block.
        block: inputs that compete with each other; None for all of a token.
    """

    def __init__(self, *, keep: float = 0.5, block: int | None = None) -> None:
        super().__init__()
        if not 0 < keep <= 1:
            raise ValueError(f"keep={keep} must be above 0 and at most 1")
        if block is not None and block < 1:
            raise ValueError(f"block={block} must be at least 1")
        self.keep, self.block = keep, block

    def forward(self, x: Tensor, dim: int) -> Tensor:
        last = features_last(x, dim)
        size = self.block or last.shape[-1]
        if last.shape[-1] % size:
            raise ValueError(f"block={size} does not divide the {last.shape[-1]} features of a layer")
        blocks = last.detach().abs().unflatten(-1, (-1, size))
        kept = largest(blocks, max(1, round(self.keep * size))).flatten(-2)
        # x + (masked - x): exactly the masked values, with the gradient of x
        sparse = last + (torch.where(kept, last, 0.0) - last).detach()
        return features_back(sparse, dim)


def largest(x: Tensor, count: int) -> Tensor:
    """Where the `count` largest of the last dimension are; among equals the first."""
    least = x.topk(count, -1).values[..., -1:]
    above, equal = x > least, x == least
    room = count - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= room))
