"""Random crop, flip and RandAugment of uint8 batches, the same for any workers and resumption."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NotRequired

import torch
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import TypedDict  # pydantic refuses typing.TypedDict before Python 3.12

from bitexp.common.randomness import derived_seed, generator
from bitexp.common.spelling import nearest
from bitexp.common.torchvision import import_torchvision


class Augment(TypedDict):
    """The key `augment` of a data set."""

    crop: int  # black border in pixels, of which a random window in the old size is taken
    flip: bool  # mirror every second image
    rand_augment: NotRequired[int]  # two random operations an image, of a strength up to 10; 0: none


LATER = "rand_augment"
"""The key that older runs do not say, and that is off then."""
STRONGEST = 10
"""The largest magnitude of RandAugment."""


def check_augment(augment: Mapping[str, Any], shape: tuple[int, int, int]) -> None:
    """Raises `ValueError` for unknown or missing keys and for a border wider than the image."""
    known = list(Augment.__annotations__)
    for key in augment:
        if key not in known:
            raise ValueError(f"unknown key 'augment.{key}'.{nearest(key, known)} Known: {', '.join(known)}")
    if missing := [key for key in known if key not in augment and key != LATER]:
        raise ValueError(f"the key 'augment.{missing[0]}' is missing")
    if not 0 <= augment["crop"] <= min(shape[1:]):
        raise ValueError(
            f"augment.crop={augment['crop']} is the border in pixels: use 0 (off) to "
            f"{min(shape[1:])}, the size of the image"
        )
    if not 0 <= augment.get("rand_augment", 0) <= STRONGEST:
        raise ValueError(
            f"augment.rand_augment={augment['rand_augment']} should be 0 (off) to {STRONGEST}, the strongest"
        )


def augments(augment: Augment) -> bool:
    """Whether any of it is on."""
    return bool(augment["crop"] or augment["flip"] or augment.get("rand_augment"))


class Augmentation:
    """Crops, flips and RandAugment by draws of its own for each (seed, epoch, image).

    RandAugment (arXiv 1909.13719) is torchvision's: two of its fourteen operations an image.
    """

    def __init__(self, augment: Augment, count: int, seed: int, white: int = 255) -> None:
        """`count` is the number of images, whose indices go with the batches; `white` the largest pixel."""
        self.crop, self.flip, self.white = augment["crop"], augment["flip"], white
        self.random: Callable[[Tensor], Tensor] | None = None
        if magnitude := augment.get("rand_augment", 0):
            v2 = import_torchvision("torchvision.transforms.v2")
            self.random = v2.RandAugment(2, magnitude, num_magnitude_bins=STRONGEST + 1)
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
        pixels = crop_flip(pixels, self.crop, shifts, flips)
        return pixels if self.random is None else self.changed(self.random, pixels, epoch, indices)

    def changed(
        self, change: Callable[[Tensor], Tensor], pixels: Tensor, epoch: int, indices: list[int]
    ) -> Tensor:
        """Each image `[C, H, W]` changed by its own draws, in pixels up to 255 as torchvision has them."""
        factor, found = 255 // self.white, []
        with torch.random.fork_rng(devices=[]):
            for image, index in zip(pixels, indices, strict=True):
                torch.manual_seed(derived_seed("rand_augment", self.seed, epoch, index))
                found.append(change(image * factor) // factor)
        return torch.stack(found)


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
