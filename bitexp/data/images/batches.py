"""Where pixels come from, and the batches a network gets: read, augmented, normalized."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from bitexp.common.errors import UserError
from bitexp.data.images.augment import Augmentation
from bitexp.data.loader import Batches


class Images(Protocol):
    """The labelled images of one part of a data set, read by index."""

    @property
    def labels(self) -> Tensor:
        """`[N]`, int64."""

    @property
    def digest(self) -> str:
        """A hash of what is in there."""

    def read(self, indices: list[int]) -> Tensor:
        """`[B, C, H, W]`, uint8. Raises `UserError` naming a file that cannot be decoded."""


@dataclass(frozen=True)
class ImagesInMemory:
    """Images in memory: uint8 `[N, C, H, W]` with int64 labels `[N]`."""

    images: Tensor
    labels: Tensor

    @cached_property
    def digest(self) -> str:
        """A hash of shapes, pixels and labels."""
        digest = hashlib.blake2b(repr(tuple(self.images.shape)).encode(), digest_size=16)
        digest.update(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def read(self, indices: list[int]) -> Tensor:
        """`[B, C, H, W]`, uint8."""
        return self.images[indices]


def checked_images(
    images: Tensor, labels: Tensor, shape: Sequence[int], classes: int, origin: object
) -> ImagesInMemory:
    """Checks that images and labels are what the data set promises, whatever a file claims.

    Raises:
        UserError: naming `origin`, where they were read.
    """
    expected = (len(labels), *shape)
    if tuple(images.shape) != expected or labels.ndim != 1 or not len(labels):
        raise UserError(
            f"{origin} holds images {list(images.shape)} and labels {list(labels.shape)}; "
            f"expected [N, {', '.join(map(str, shape))}] and [N]. Replace the files"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise UserError(f"{origin} holds labels outside 0 to {classes - 1}. Replace the files")
    return ImagesInMemory(images, labels.to(torch.int64))


def channel_statistics(images: Images, indices: Tensor, divide_by: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over the images `indices` `[N]`.

    From exact integer histograms, so they are the same for any order, chunk and number of threads.
    A constant channel gets the deviation 1.
    """
    histogram: Tensor | None = None
    for chunk in indices.split(256):
        pixels = images.read(chunk.tolist())
        counts = [torch.bincount(channel.flatten(), minlength=256) for channel in pixels.unbind(1)]
        histogram = torch.stack(counts) if histogram is None else histogram + torch.stack(counts)
    assert histogram is not None, "there is at least one training image"
    means, deviations = [], []
    for row in histogram.tolist():
        count, total = sum(row), sum(value * times for value, times in enumerate(row))
        squares = sum(value * value * times for value, times in enumerate(row))
        means.append(total / count / divide_by)
        deviations.append(math.sqrt(count * squares - total * total) / count / divide_by or 1.0)
    return means, deviations


class ImageBatches(Batches):
    """Batches as a network gets them. An item is a whole batch: one read, no work per image."""

    def __init__(
        self,
        images: Images,
        divide_by: int,
        mean: list[float],
        std: list[float],
        augmentation: Augmentation | None,
    ) -> None:
        self.images = images
        self.divide_by = divide_by
        self.mean = torch.tensor(mean).reshape(-1, 1, 1)
        self.std = torch.tensor(std).reshape(-1, 1, 1)
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.images.labels)

    def __getitem__(self, request: tuple[int, list[int]]) -> tuple[Tensor, Tensor]:
        """(epoch, indices) -> uint8 `[B, C, H, W]` and int64 `[B]`."""
        epoch, indices = request
        pixels = self.images.read(indices)
        if self.augmentation is not None:
            pixels = self.augmentation(pixels, epoch, indices)
        return pixels, self.images.labels[indices]

    def finish(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels -> normalized float32 `[B, C, H, W]`."""
        return inputs.to(torch.float32).div_(self.divide_by).sub_(self.mean).div_(self.std), targets
