"""Which flipped bits a packed file's own checks find."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from bitexp.common.errors import UserError
from bitexp.common.randomness import generator
from bitexp.deploy.packed_file import PackedFile, read_packed, unpack
from bitexp.kernels.reference import Reference


def found_in_file(path: Path, count: int, seed: int = 0) -> float:
    """The share of random single flips anywhere in a packed file that reading it reports."""
    content, draws = bytearray(path.read_bytes()), generator("damage", seed)
    found = 0
    with tempfile.TemporaryDirectory(prefix="bitexp-attack-") as scratch:
        damaged = Path(scratch) / "packed.safetensors"
        for _ in range(count):
            byte, bit = divmod(int(torch.randint(8 * len(content), (), generator=draws)), 8)
            content[byte] ^= 1 << bit
            damaged.write_bytes(content)
            found += refused(damaged)
            content[byte] ^= 1 << bit
    return found / count


def refused(path: Path) -> bool:
    """Whether a file is found damaged when it is read."""
    try:
        read_packed(path)
    except UserError:
        return True
    return False


def found_without_checksum(file: PackedFile, names: list[str], count: int, seed: int = 0) -> float:
    """The share of random single flips in some tensors that is reported though the checksum fits.

    What is left are the bytes that no codes make and values that no training leaves.
    """
    header, tensors = file
    sizes = [8 * tensors[name].nbytes for name in names]
    draws, found = generator("damage", seed), 0
    for _ in range(count):
        number = int(torch.randint(sum(sizes), (), generator=draws))
        at = 0
        while number >= sizes[at]:
            number -= sizes[at]
            at += 1
        found += not_loaded(header, {**tensors, names[at]: with_flip(tensors[names[at]], number)})
    return found / count


def with_flip(tensor: torch.Tensor, number: int) -> torch.Tensor:
    """A copy of a tensor with one of its bits flipped."""
    copy = tensor.clone()
    copy.reshape(-1).view(torch.uint8)[number // 8] ^= 1 << number % 8
    return copy


def not_loaded(header: Mapping[str, object], tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether no model is made of a file's header and tensors."""
    try:
        unpack(Path("packed.safetensors"), (dict(header), dict(tensors)), Reference())
    except UserError:
        return True
    return False
