"""What tests of packed files begin with."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from tests.support.packed_files import describe, write


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Tensor, Tensor]:
    """The bytes of a good file, an input, and what its model answers."""
    path = tmp_path_factory.mktemp("good") / "packed.safetensors"
    _, x, expected = write(path, describe())
    return path.read_bytes(), x, expected


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where spoiled files lie."""
    return tmp_path_factory.mktemp("spoiled") / "packed.safetensors"
