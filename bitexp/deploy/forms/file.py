"""What files of stacks and of deltas have in common: safetensors, a header of their kind and a checksum."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from bitexp.common.errors import UserError
from bitexp.common.files import write_atomic
from bitexp.deploy.packed_file import PackedFile, check_crc, checksum_of, read_packed, read_parts
from bitexp.deploy.packing import layout_of
from bitexp.quant.levels import BINARY

SIGNS = layout_of("pack1", BINARY)
"""How signs lie in bytes: that of every binary network."""
UNFIT = (IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What parts of a file raise that do not fit together."""


def full_precision(path: Path) -> PackedFile:
    """The packed file of a network in full precision.

    Raises:
        UserError: it is quantized, or no packed file.
    """
    header, tensors = read_packed(path)
    if header["layers"]:
        raise UserError(
            f"{path} is quantized already: this form is made of a network in full precision (quantizer=full)"
        )
    if not matrices(header, tensors):
        raise UserError(f"{path} has no weights that this form is made of")
    return header, tensors


def matrices(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the weights of the body, which take another form."""
    names = [f"{name}.weight" for name in header["body"]]
    return [name for name in names if name in tensors and tensors[name].dim() > 1]


def packed_signs(values: Tensor) -> Tensor:
    """The signs of `[rows, inputs]`, 0 as +1, at one bit each: uint8 `[rows, bytes]`."""
    return SIGNS.pack(torch.where(values >= 0, 1, -1).to(torch.int8))


def signs(packed: Tensor, inputs: int) -> Tensor:
    """-1.0 and 1.0 `[rows, inputs]`. Raises `ValueError` for what no signs make."""
    if packed.dtype != torch.uint8 or packed.dim() != 2:
        raise ValueError(f"signs are rows of bytes, and these are {packed.dtype} {list(packed.shape)}")
    return SIGNS.unpack(packed, inputs).float()


def save_form(path: Path, kind: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes a file of a kind, with its checksum."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    whole = {**header, "crc32": checksum_of(header, tensors)}
    write_atomic(path, save(tensors, {f"bitexp_{kind}": json.dumps(whole)}))


def read_form(path: Path, kind: str, parts: Mapping[str, type]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file of a kind.

    Args:
        parts: the keys that its header has, with their types.

    Raises:
        UserError: there is none, it is of another kind, or damaged.
    """
    header, tensors = read_parts(path, f"bitexp_{kind}", f"{kind} file")
    types = {key: type(part) for key, part in header.items()} if isinstance(header, dict) else {}
    if types != {**parts, "crc32": int}:
        raise UserError(f"{path} is not a {kind} of bitexp")
    check_crc(path, header, tensors)
    return header, tensors
