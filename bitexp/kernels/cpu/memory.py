"""Memory for packed weights, in huge pages where the system has them.

A token takes every weight once. With pages of 4 KiB a processor waits at each of them, for its translation
and since it looks ahead within a page only; in pages of 2 MiB a layer reads a fifth faster.
"""

from __future__ import annotations

import contextlib
import mmap
import threading

import torch
from torch import Tensor

HUGE = 2**21
ARENA = 2**25
"""Bytes that are set aside at once. Only what is used takes memory; it goes with the last weights in it."""
LINE = 64

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
