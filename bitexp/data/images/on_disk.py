"""Images in files, decoded while training: only their names are kept in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bitexp.common.torchvision import import_torchvision
from bitexp.data.hashes import content_hashes
from bitexp.data.images.decode import DECODING, decode


@dataclass(frozen=True)
class ImagesOnDisk:
    """Images in files: resized by the shorter side, the centre cut out as a square."""

    root: Path
    names: np.ndarray  # [N], relative; an array, as workers would copy a list page by page
    labels: Tensor  # [N], int64
    channels: int
    size: int

    def __post_init__(self) -> None:
        import_torchvision("torchvision.transforms.v2")  # once, not in every process of a loader

    @cached_property
    def digest(self) -> str:
        """A hash of names, contents and labels. Raises `UserError` naming files that cannot be decoded."""
        names = self.names.tolist()
        hashes = content_hashes(self.root, names, "images", partial(decode, channels=self.channels))
        digest = hashlib.blake2b(f"decoding {DECODING}\n".encode(), digest_size=16)
        for name, content, label in zip(names, hashes, self.labels.tolist(), strict=True):
            digest.update(f"{name}\0{content}\0{label}\n".encode())
        return digest.hexdigest()

    def read(self, indices: list[int]) -> Tensor:
        """`[B, C, size, size]`, uint8. Raises `UserError` as `decode` does."""
        return torch.stack([self._decode(self.root / str(self.names[index])) for index in indices])

    def _decode(self, path: Path) -> Tensor:
        functional = import_torchvision("torchvision.transforms.v2").functional
        image = decode(path, self.channels)
        image = functional.center_crop(functional.resize(image, [self.size]), [self.size])
        pixels: Tensor = functional.pil_to_tensor(image)
        return pixels
