"""Random crop and flip of whole uint8 batches, the same for any workers and resumption."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import TypedDict  # pydantic refuses typing.TypedDict before Python 3.12

from bitexp.common.randomness import generator
from bitexp.common.spelling import nearest


class Augment(TypedDict):
    """The key `augment` of a data set."""

    crop: int  # black border in pixels, of which a random window in the old size is taken
    flip: bool  # mirror every second image


def check_augment(augment: Mapping[str, Any], shape: tuple[int, int, int]) -> None:
    """Raises `ValueError` for unknown or missing keys and for a border wider than the image."""
    known = list(Augment.__annotations__)
    for key in augment:
        if key not in known:
            raise ValueError(f"unknown key 'augment.{key}'.{nearest(key, known)} Known: {', '.join(known)}")
    if missing := [key for key in known if key not in augment]:
        raise ValueError(f"the key 'augment.{missing[0]}' is missing")
    if not 0 <= augment["crop"] <= min(shape[1:]):
        raise ValueError(
            f"augment.crop={augment['crop']} is the border in pixels: use 0 (off) to "
            f"{min(shape[1:])}, the size of the image"
        )


class Augmentation:
    """Crops and flips by draws of its own for each (seed, epoch, image)."""

    def __init__(self, augment: Augment, count: int, seed: int) -> None:
        """`count` is the number of images, whose indices go with the batches."""
        self.crop, self.flip = augment["crop"], augment["flip"]
        self.count, self.seed = count, seed
        self._table: tuple[int, Tensor] | None = None

    def draws(self, epoch: int) -> Tensor:
        """The three uniform numbers of every image in an epoch, `[count, 3]`: flip, down, right."""
        if self._table is None or self._table[0] != epoch:
            table = torch.rand(self.count, 3, generator=generator("augment", self.seed, epoch))
            self._table = epoch, table
        return self._table[1]

    def __call__(self, pixels: Tensor, epoch: int, indices: list[int]) -> Tensor:
        """`[B, C, H, W]` of the images `indices` -> the same shape, cropped and flipped."""
        draws = self.draws(epoch)[indices]
        shifts = (draws[:, 1:] * (2 * self.crop + 1)).long()
        flips = (draws[:, 0] < 0.5) & self.flip
        return crop_flip(pixels, self.crop, shifts, flips)


def crop_flip(pixels: Tensor, border: int, shifts: Tensor, flips: Tensor) -> Tensor:
    """A window of each image, put in a border of zeros first, then mirrored where asked.

    Args:
        pixels: `[B, C, H, W]`.
        border: width of the border; the window keeps the size `H x W`.
        shifts: `[B, 2]`, the window's upper left corner in the bordered image, 0 to 2 * border.
        flips: `[B]`, bool.
    """
    batch, channels, height, width = pixels.shape
    bordered = pad(pixels, (border, border, border, border))
    rows = shifts[:, :1] + torch.arange(height)  # [B, H]
    columns = torch.arange(width).expand(batch, width)
    columns = torch.where(flips[:, None], width - 1 - columns, columns) + shifts[:, 1:]  # [B, W]
    # one gather over flat pixels: six times as fast as indexing with four broadcast tensors
    flat = (rows[:, :, None] * bordered.shape[3] + columns[:, None, :]).reshape(batch, 1, -1)
    return bordered.flatten(2).gather(2, flat.expand(-1, channels, -1)).reshape(pixels.shape)
