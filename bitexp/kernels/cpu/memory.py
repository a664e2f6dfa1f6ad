"""Memory: of tensors as arrays, and for packed weights in huge pages where the system has them.

A token takes every weight once. With pages of 4 KiB a processor waits at each of them, for its translation
and since it looks ahead within a page only; in pages of 2 MiB a layer reads a fifth faster.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

HUGE = 2**21
ARENA = 2**25
"""Bytes that are set aside at once. Only what is used takes memory; it goes with the last weights in it."""
LINE = 64

TYPES = {torch.float32: "<f4", torch.int32: "<i4", torch.int8: "|i1"}
"""As numpy calls them."""


class Memory:
    """The memory of a contiguous tensor, which it keeps alive, in the way that numpy asks for it."""

    __slots__ = ("__array_interface__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.__array_interface__ = {
            "data": (tensor.data_ptr(), False),
            "shape": tuple(tensor.shape),
            "typestr": TYPES[tensor.dtype],
            "version": 3,
        }


def array(tensor: Tensor) -> Any:
    """A contiguous tensor in main memory as an array, with no copy: for tensors that others hold as well.

    `Tensor.numpy`, which takes half as long, forbids for good that the memory is given back, as FSDP does.
    """
    return np.asarray(Memory(tensor))


_lock = threading.Lock()
_arena: list[Tensor] = []


def copied(weights: Tensor) -> Tensor:
    """A copy of uint8 weights, at the beginning of a cache line; small ones share pages with each other."""
    size = weights.numel()
    with _lock, torch.inference_mode(False):  # the arena outlives the mode in which it is made
        if not _arena or len(_arena[0]) < size:
            _arena[:] = [fresh(max(size, ARENA))]
        memory = _arena[0]
        _arena[0] = memory[-(-size // LINE) * LINE :]
        return memory[:size].view(weights.shape).copy_(weights)


def fresh(size: int) -> Tensor:
    """At least so many bytes from the system, from the beginning of a huge page on."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):  # not Linux
        return torch.empty(size, dtype=torch.uint8)
    pages = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(pages, dtype=torch.uint8)
    return memory[-memory.data_ptr() % HUGE :]
