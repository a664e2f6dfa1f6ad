"""Images in files, decoded while training: only their names are kept in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bitexp.data.images.decode import decode


@dataclass(frozen=True)
class ImagesOnDisk:
    """Images in files: resized by the shorter side, the centre cut out as a square."""

    root: Path
    names: np.ndarray  # [N], relative; an array, as workers would copy a list page by page
    labels: Tensor  # [N], int64
    channels: int
    size: int

    @cached_property
    def digest(self) -> str:
        """A hash of names, sizes in bytes and labels: reading millions of files takes too long."""
        digest = hashlib.blake2b(digest_size=16)
        for name, label in zip(self.names.tolist(), self.labels.tolist(), strict=True):
            digest.update(f"{name}\0{(self.root / name).stat().st_size}\0{label}\n".encode())
        return digest.hexdigest()

    def read(self, indices: list[int]) -> Tensor:
        """`[B, C, size, size]`, uint8. Raises `UserError` as `decode` does."""
        return torch.stack([self._decode(self.root / str(self.names[index])) for index in indices])

    def _decode(self, path: Path) -> Tensor:
        from torchvision.transforms.v2 import functional

        image = decode(path, self.channels)
        image = functional.center_crop(functional.resize(image, [self.size]), [self.size])
        pixels: Tensor = functional.pil_to_tensor(image)
        return pixels
