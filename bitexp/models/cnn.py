"""Convolutional network: convolutions with batch norm and ReLU, average pooling, a linear head.

Batch norm follows each convolution, as in an ordinary network; it stays in full precision.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from bitexp.common import checks
from bitexp.models.registry import MODELS
from bitexp.models.tape import Tape, Value
from bitexp.models.taps import Tap, Taps


class ConvBlock(nn.Module):
    """Convolution, batch norm, ReLU, max-pooling: `[B, C, H, W] -> [B, out, H/pool, W/pool]`."""

    def __init__(self, channels: int, out: int, kernel: int, pool: int) -> None:
        super().__init__()
        self.pool = pool
        # No bias: batch norm would subtract it again.
        self.conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        return x if self.pool == 1 else F.max_pool2d(x, self.pool)

    def record(self, tape: Tape, x: Value) -> Value:
        """See `CNN.record`."""
        x = tape.activate("relu", tape.batch_norm(self.norm, tape.convolve(self.conv, x)))
        return x if self.pool == 1 else tape.max_pool(x, self.pool)


@MODELS.register("cnn")
class CNN(nn.Module):
    """Images `[B, C, H, W]` -> logits `[B, classes]`.

    One convolution per entry of `widths`; `pool` holds the max-pooling window after each (1: none).
    Raises `ValueError`, before anything is allocated, for sizes that do not fit each other.
    """

    taps: ClassVar[Taps] = {"hidden": Tap("blocks.*")}

    def __init__(
        self,
        *,
        shape: tuple[int, int, int],
        classes: int,
        widths: list[int],
        pool: list[int],
        kernel: int,
        dropout: float,
    ) -> None:
        checks.check_image(shape, classes)
        checks.check_list("widths", widths)
        checks.check_list("pool", pool)
        checks.check_dropout(dropout)
        channels, height, width = shape
        if len(pool) != len(widths):
            raise ValueError(
                f"pool={list(pool)} has {len(pool)} entries and widths={list(widths)} has "
                f"{len(widths)}; give one window per convolution, 1 for none"
            )
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel={kernel} must be odd and at least 1, so that the image keeps its size")
        if prod(pool) > min(height, width):
            raise ValueError(
                f"pool={list(pool)} divides height and width by {prod(pool)}, which leaves nothing "
                f"of the {height}x{width} image; use fewer or smaller windows, 1 for none"
            )
        super().__init__()
        self.shape = shape
        layers = zip(pairwise([channels, *widths]), pool, strict=True)
        stem, *blocks = (ConvBlock(i, o, kernel, p) for (i, o), p in layers)
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.drop(x.mean(dim=(2, 3))))

    def record(self, tape: Tape) -> Value:
        """Logits `[1, classes]` of one image, in evaluation."""
        x = self.stem.record(tape, tape.image(*self.shape))
        for block in self.blocks:
            assert isinstance(block, ConvBlock)
            x = block.record(tape, x)
        return tape.linear(self.head, tape.mean_pixels(x))
