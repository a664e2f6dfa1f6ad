"""A safetensors file that is written tensor by tensor, of which one at a time need be in memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from bitexp.common.files import open_atomic

NAMES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32",
    torch.int64: "I64", torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32",
    torch.float64: "F64",
}  # fmt: skip
"""Types in the format's words."""
PIECE = 2**24
"""Bytes that are written at once."""


class Made(Mapping[str, Tensor]):
    """Tensors that are made whenever they are asked for, and not kept."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self.makers = makers

    def __getitem__(self, name: str) -> Tensor:
        return self.makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.makers)

    def __len__(self) -> int:
        return len(self.makers)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Writes a file, atomically.

    Args:
        tensors: contiguous ones on the CPU; each is asked for once. shapes: the same on `meta`.

    Raises:
        KeyError: a tensor has a type that the format has not.
    """
    order = sorted(shapes, key=lambda name: (-shapes[name].element_size(), name))  # so that all are aligned
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        start, end = end, end + shapes[name].nbytes
        header[name] = {
            "dtype": NAMES[shapes[name].dtype],
            "shape": list(shapes[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open_atomic(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            write_bytes(file, tensors[name])


def write_bytes(file: IO[bytes], tensor: Tensor) -> None:
    """The bytes of a tensor."""
    content = tensor.flatten().view(torch.uint8).numpy()
    for start in range(0, len(content), PIECE):
        file.write(content[start : start + PIECE].data)
