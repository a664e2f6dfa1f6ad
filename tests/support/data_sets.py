"""Small data sets in the formats of the real ones, drawn at random."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tests.support.configs import CONF


class Arguments(Protocol):
    """Keyword arguments of a fixed data set: those of digits.yaml, a seed, and changes."""

    def __call__(self, **changes: Any) -> dict[str, Any]: ...


def arguments(**changes: Any) -> dict[str, Any]:
    """Keyword arguments of a fixed data set: those of digits.yaml, a seed, and changes."""
    defaults = yaml.safe_load((CONF / "data" / "digits.yaml").read_text())
    del defaults["name"]
    return {**defaults, "seed": 1, **changes}


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    """An array as an IDX file, the format of MNIST."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


class WriteMnist(Protocol):
    """Writes the four files of a small MNIST; returns images and labels of each part."""

    def __call__(
        self, folder: Path, gz: bool = ..., seed: int = ..., train: int = ..., test: int = ...
    ) -> dict[str, tuple[Tensor, Tensor]]: ...


def write_mnist(
    folder: Path, gz: bool = False, seed: int = 0, train: int = 60, test: int = 20
) -> dict[str, tuple[Tensor, Tensor]]:
    """Writes the four files of a small MNIST; returns images and labels of each part."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    parts = {}
    for part, prefix, count in (("train", "train", train), ("test", "t10k", test)):
        images = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{prefix}-{name}-ubyte{'.gz' if gz else ''}"
            path.write_bytes(gzip.compress(idx_bytes(array)) if gz else idx_bytes(array))
        parts[part] = torch.from_numpy(images), torch.from_numpy(labels)
    return parts


def write_cifar(root: Path, classes: int, seed: int = 0) -> None:
    """Writes CIFAR-10 or CIFAR-100: batches of 100 pictures each, pickled."""
    ten = classes == 10
    folder = root / ("cifar-10-batches-py" if ten else "cifar-100-python")
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    labels = "labels" if ten else "fine_labels"
    for part in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"] if ten else ["train", "test"]:
        batch: dict[str, Any] = {"data": draw.integers(0, 256, (100, 3072), dtype=np.uint8)}
        batch[labels] = [n % classes for n in range(100)]
        (folder / part).write_bytes(pickle.dumps(batch))
    names = "label_names" if ten else "fine_label_names"
    meta = {names: [str(n) for n in range(classes)]}
    (folder / ("batches.meta" if ten else "meta")).write_bytes(pickle.dumps(meta))


def write_texts(folder: Path, documents: int = 60, seed: int = 0) -> None:
    """Writes documents of sixty words as a file of JSON lines."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    words = np.array(["one", "two", "three", "four", "five", "six", "seven", "\u00e9ight"])
    texts = (" ".join(draw.choice(words, 60)) for _ in range(documents))
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def write_pictures(folder: Path, count: int = 60, classes: int = 3, seed: int = 0) -> None:
    """Writes PNG files, a folder for each class."""
    draw = np.random.default_rng(seed)
    for number in range(count):
        path = folder / f"class{number % classes}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (70, 65, 3), dtype=np.uint8)).save(path)


def write_data_sets(root: Path) -> None:
    """Writes one of each, where the data sets of `conf/data/` look for them below `data.data_dir`."""
    write_cifar(root, 10)
    write_cifar(root, 100)
    for name in ("mnist", "fashion-mnist"):
        write_mnist(root / name, train=100)
    write_texts(root / "texts")
    write_pictures(root / "pictures")
