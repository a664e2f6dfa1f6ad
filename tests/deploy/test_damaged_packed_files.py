"""Packed files that are missing, damaged or foreign: words for the user, never anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from bitexp.common.errors import UserError
from bitexp.deploy.packed_file import read_packed
from tests.support.packed_files import (
    assert_refused,
)  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file of a test lies."""
    return tmp_path / "packed.safetensors"


def test_a_missing_file_is_named(path: Path) -> None:
    assert_refused(path, "there is no packed file")
    with pytest.raises(UserError, match="there is no packed file"):
        read_packed(path)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"PK\3\4 a zip file", b"{}", b"\xff" * 64])
def test_a_foreign_file_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert_refused(path, "is damaged or no safetensors file")


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"format": "pt"},
        {"bitexp": "{"},
        {"bitexp": "[]"},
        {"bitexp": '{"format": 1}'},
        {"bitexp": '{"format": 2, "body": [], "layers": {}, "description": {}}'},
        {"bitexp": "[" * 100_000},
    ],
)
def test_safetensors_of_others_are_refused(path: Path, metadata: dict[str, str] | None) -> None:
    path.write_bytes(save({"weight": torch.ones(2)}, metadata))
    assert_refused(path)
    with pytest.raises(UserError):
        read_packed(path)


def test_a_folder_is_refused(path: Path) -> None:
    path.mkdir()
    assert_refused(path)


@given(data=st.data())
def test_a_truncated_file_is_refused(
    original: tuple[bytes, Tensor, Tensor], spoiled: Path, data: st.DataObject
) -> None:
    content = original[0]
    spoiled.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    assert_refused(spoiled, "damaged")


@given(data=st.data())
def test_a_flipped_bit_is_noticed(
    original: tuple[bytes, Tensor, Tensor], spoiled: Path, data: st.DataObject
) -> None:
    content = bytearray(original[0])
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    spoiled.write_bytes(content)
    assert_refused(spoiled)


def test_every_byte_of_the_header_counts(original: tuple[bytes, Tensor, Tensor], spoiled: Path) -> None:
    content = original[0]
    for at in range(8 + int.from_bytes(content[:8], "little")):
        spoiled.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(UserError):
            read_packed(spoiled)
