"""What the tests of data sets share: arguments as the YAML has them, and writers of data files."""

from __future__ import annotations

import pytest

from tests.support import data_sets


@pytest.fixture
def arguments() -> data_sets.Arguments:
    """Keyword arguments of a fixed data set: those of digits.yaml, a seed, and changes."""
    return data_sets.arguments


@pytest.fixture
def write_mnist() -> data_sets.WriteMnist:
    """Writes the four files of a small MNIST; returns images and labels of each part."""
    return data_sets.write_mnist
