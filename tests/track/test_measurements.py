"""What is measured of a run later: once, and of the packed file as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitexp.track.folder import checksum
from bitexp.track.measurements import FILE, keep, later_metrics, measured


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a packed file, of any content."""
    (tmp_path / "packed.safetensors").write_bytes(b"weights")
    return tmp_path


def test_what_was_asked_before_is_known(folder: Path) -> None:
    assert measured(folder, "attack", {"flips": 3}) is None
    assert keep(folder, "attack", {"flips": 3}, {"a": 1, "b": float("inf")}) == {"a": 1.0}
    keep(folder, "corruptions", {}, {"c": 2.0})
    assert measured(folder, "attack", {"flips": 3}) == {"a": 1.0}
    assert measured(folder, "attack", {"flips": 4}) is None
    assert later_metrics(folder, checksum(folder / "packed.safetensors")) == {"a": 1.0, "c": 2.0}


def test_what_was_measured_of_other_weights_does_not_count(folder: Path) -> None:
    keep(folder, "attack", {}, {"a": 1.0})
    (folder / "packed.safetensors").write_bytes(b"others")
    assert measured(folder, "attack", {}) is None
    assert later_metrics(folder, checksum(folder / "packed.safetensors")) == {}


@pytest.mark.parametrize("text", ["", "[1]", '{"attack": 3}', '{"attack": {"metrics": {"a": "x"}}}'])
def test_garbage_is_no_measurement(folder: Path, text: str) -> None:
    (folder / FILE).write_text(text)
    assert measured(folder, "attack", {}) is None
    assert later_metrics(folder, None) == {}
