"""MNIST and Fashion-MNIST, from their four IDX files."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from bitexp.common.errors import UserError, is_of_the_machine
from bitexp.common.torchvision import import_torchvision
from bitexp.data.base import Part
from bitexp.data.images.batches import ImagesInMemory, checked_images
from bitexp.data.images.published import PublishedDataset
from bitexp.data.registry import DATA


def read_idx(path: Path) -> Tensor:
    """The uint8 tensor in an IDX file, gzipped or not. Raises `UserError` naming a damaged file."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        if is_of_the_machine(error):
            raise
        raise UserError(f"{path} cannot be read ({error}). Replace the file") from error
    # magic: two zeros, 8 for unsigned bytes, the number of dimensions; then each size, big-endian
    dimensions = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    start = 4 + 4 * dimensions
    sizes = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if not dimensions or len(content) <= start or len(content) - start != math.prod(sizes):
        raise UserError(
            f"{path} is not a complete IDX file of bytes: its header says sizes {sizes}, and "
            f"{max(len(content) - start, 0)} bytes follow. Replace the file"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).reshape(sizes)


@DATA.register("mnist")
class Mnist(PublishedDataset):
    """60,000 + 10,000 grey 28 x 28 images of handwritten digits."""

    title = "MNIST"
    hub = "ylecun/mnist"
    shape = (1, 28, 28)
    classes = 10
    folders: ClassVar[Sequence[str]] = ("mnist", "MNIST/raw")
    files: ClassVar[dict[Part, Sequence[str]]] = {
        "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    }
    endings = ("", ".gz")

    @classmethod
    def parse(cls, part: Part, files: Sequence[Path]) -> ImagesInMemory:
        images, labels = (read_idx(path) for path in files)
        return checked_images(images.unsqueeze(1), labels, cls.shape, cls.classes, files[0])

    @classmethod
    def fetch(cls, root: Path) -> None:
        import_torchvision("torchvision.datasets").MNIST(root, download=True)


@DATA.register("fashion_mnist")
class FashionMnist(Mnist):
    """60,000 + 10,000 grey 28 x 28 images of clothes from a shop."""

    title = "Fashion-MNIST"
    hub = "zalando-datasets/fashion_mnist"
    folders = ("fashion-mnist", "fashion_mnist", "FashionMNIST/raw")
    other_way = "`make data` (the package dataset-fashion-mnist of Debian and Ubuntu), "

    @property
    def class_names(self) -> list[str]:
        return [
            "T-shirt/top",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle boot",
        ]

    @classmethod
    def fetch(cls, root: Path) -> None:
        import_torchvision("torchvision.datasets").FashionMNIST(root, download=True)
