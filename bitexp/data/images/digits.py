"""The handwritten digits inside scikit-learn: there after installation, without any download."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from bitexp.common.errors import UserError
from bitexp.data.base import Part
from bitexp.data.images.base import ImageData
from bitexp.data.images.batches import ImagesInMemory, checked_images
from bitexp.data.images.split import stratified
from bitexp.data.registry import DATA

TEST_IMAGES = 360
TEST_SEED = 0  # the published data have no test part: this cut of 1,437 / 360 never changes


@DATA.register("digits")
class Digits(ImageData):
    """1,797 grey 8 x 8 images of handwritten digits (UCI, the test part), with 17 levels."""

    title = "scikit-learn digits"
    shape = (1, 8, 8)
    classes = 10
    divide_by = 16

    def locate(self) -> str:
        if self.data_dir is not None or self.download:
            raise UserError(
                "data=digits is part of scikit-learn: leave data.data_dir=null and "
                "data.download=false, or take your own images with data=image_folder"
            )
        spec = importlib.util.find_spec("sklearn")
        if spec is None or spec.origin is None:
            raise UserError("data=digits needs scikit-learn: pip install scikit-learn")
        return spec.origin

    def read(self, part: Part) -> ImagesInMemory | None:
        self.locate()
        return None if part == "val" else _parts()[part]


def _file() -> Path:
    """Where scikit-learn keeps them: importing it for its `load_digits` takes longer than a short run."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"


@lru_cache(maxsize=1)
def _parts() -> dict[Part, ImagesInMemory]:
    table = torch.from_numpy(np.loadtxt(_file(), dtype=np.int64, delimiter=","))  # [1797, 65]
    images = table[:, :-1].to(torch.uint8).reshape(-1, 1, 8, 8)  # 0..16
    labels = table[:, -1].clone()
    training, test = stratified(labels, TEST_IMAGES, TEST_SEED)
    parts: dict[Part, torch.Tensor] = {"train": training, "test": test}
    return {
        part: checked_images(images[indices], labels[indices], Digits.shape, Digits.classes, "scikit-learn")
        for part, indices in parts.items()
    }
