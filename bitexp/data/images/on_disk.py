"""Images in files, decoded while training: only their names are kept in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bitexp.common.errors import UserError


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
        """`[B, C, size, size]`, uint8. Raises `UserError` naming a file that is no image."""
        return torch.stack([self._decode(self.root / str(self.names[index])) for index in indices])

    def _decode(self, path: Path) -> Tensor:
        from PIL import Image
        from torchvision.transforms.v2 import functional

        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB" if self.channels == 3 else "L")
        except Exception as error:  # a damaged image may raise nearly anything
            raise UserError(f"{path} cannot be decoded ({error}). Repair or remove the file") from error
        image = functional.center_crop(functional.resize(image, [self.size]), [self.size])
        pixels: Tensor = functional.pil_to_tensor(image)
        return pixels
