"""What the tests of data sets share: arguments as the YAML has them, and writers of data files."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

CONF = Path(__file__).parents[2] / "conf" / "data"


@pytest.fixture
def arguments() -> Callable[..., dict[str, Any]]:
    """Keyword arguments of a fixed data set: those of digits.yaml, a seed, and changes."""

    def build(**changes: Any) -> dict[str, Any]:
        defaults = yaml.safe_load((CONF / "digits.yaml").read_text())
        del defaults["name"]
        return {**defaults, "seed": 1, **changes}

    return build


def idx_bytes(tensor: Tensor) -> bytes:
    """A uint8 tensor as an IDX file."""
    sizes = b"".join(size.to_bytes(4, "big") for size in tensor.shape)
    return bytes([0, 0, 8, tensor.ndim]) + sizes + tensor.numpy().tobytes()


@pytest.fixture
def write_mnist() -> Callable[..., dict[str, tuple[Tensor, Tensor]]]:
    """Writes the four files of a small MNIST; returns images and labels of each part."""

    def write(folder: Path, gz: bool = False, seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
        folder.mkdir(parents=True, exist_ok=True)
        draw = torch.Generator().manual_seed(seed)
        parts = {}
        for part, prefix, count in (("train", "train", 60), ("test", "t10k", 20)):
            images = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=draw)
            labels = torch.arange(count, dtype=torch.uint8) % 10
            for name, tensor in (("images-idx3", images), ("labels-idx1", labels)):
                content = idx_bytes(tensor)
                path = folder / f"{prefix}-{name}-ubyte{'.gz' if gz else ''}"
                path.write_bytes(gzip.compress(content) if gz else content)
            parts[part] = images, labels
        return parts

    return write
