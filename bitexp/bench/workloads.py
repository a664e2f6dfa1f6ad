"""Two bare networks in which nothing but the layers and what always surrounds them costs anything."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HIDDEN, HEADS, TOKENS = 256, 1024, 4, 64


class Mlp(nn.Module):
    """A residual MLP, 256 -> 1024 -> 256: `[batch, tokens, 256]` to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """A causal transformer block of that width with 4 heads; its norms stay what they are."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.mlp = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), Mlp()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp.down(F.gelu(self.mlp.up(self.norm2(x))))


WORKLOADS: dict[str, type[nn.Module]] = {"reference_mlp": Mlp, "reference_block": Block}
"""Words for `--model` beside those of conf/model."""


def tokens(batch: int) -> Tensor:
    """An input: `batch` windows of 64 tokens."""
    return torch.randn(batch, TOKENS, WIDTH)
