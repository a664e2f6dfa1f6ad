"""Files of tensors that anyone may have made: safetensors, and state dicts of torch, read without pickle."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from bitexp.common.errors import UserError, first_line, is_of_the_machine
from bitexp.common.files import open_regular

LARGEST_HEADER = 64 * 2**20
"""Bytes of the header of a safetensors file; that of the largest models has a tenth of it."""

Shapes = dict[str, tuple[int, ...]]


def header_of(path: Path) -> tuple[dict[str, str], Shapes]:
    """Metadata and shapes of a safetensors file, of which no tensor is read; empty where it is none."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = struct.unpack("<Q", file.read(8))[0]
            if length > min(size, LARGEST_HEADER):
                return {}, {}
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        return dict(metadata), {name: tuple(map(int, entry["shape"])) for name, entry in header.items()}
    except (struct.error, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return {}, {}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, in its memory.

    Raises:
        UserError: it is missing, or damaged.
    """
    with open_regular(path):  # which tells why it cannot be opened, as safetensors does not
        pass
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}") from None


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """A state dict from .safetensors or from what torch.save wrote, in its order.

    Raises:
        UserError: it is none; it would have to execute something.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    with open_regular(path):
        pass
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if is_of_the_machine(error):
            raise
        raise UserError(f"{path} is damaged, or no file of plain tensors: {first_line(error)}") from None
    for key in ("state_dict", "model"):  # what training scripts put around it
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    named = isinstance(content, Mapping) and bool(content)
    if not named or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in content.items()):
        raise UserError(f"{path} is no state dict: names with tensors")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}
