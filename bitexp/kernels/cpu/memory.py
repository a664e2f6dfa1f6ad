"""Memory: of tensors as arrays, and for packed weights in huge pages where the system has them.

A token takes every weight once. With pages of 4 KiB a processor waits at each of them, for its translation
and since it looks ahead within a page only; in pages of 2 MiB a layer reads a fifth faster.
"""

from __future__ import annotations

import bisect
import contextlib
import mmap
import threading
import weakref
from collections import deque
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
_arenas: weakref.WeakSet[Arena] = weakref.WeakSet()
"""Those that hold weights; what is taken from one keeps it."""


class Arena:
    """Memory from the system, in huge pages, that is given out in whole cache lines."""

    def __init__(self, size: int) -> None:
        """At least `size` bytes."""
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        self.pages = mmap.mmap(-1, size + HUGE, **private)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without them
                self.pages.madvise(mmap.MADV_HUGEPAGE)
        start = -torch.frombuffer(self.pages, dtype=torch.uint8).data_ptr() % HUGE
        self.free = [(start, len(self.pages))]
        """What nobody has, from where to where, in ascending order."""
        self.returned: deque[tuple[int, int]] = deque()
        """What nobody has any more; a tensor dies at any time, so that it may not take the lock."""

    def take(self, size: int) -> memoryview | None:
        """Memory that comes back when nothing holds it any more; None where no piece is as large."""
        while self.returned:
            self._put_back(*self.returned.popleft())
        for place, (start, end) in enumerate(self.free):
            if end - start >= size:
                self.free[place : place + 1] = [(start + size, end)] if end - start > size else []
                view = memoryview(self.pages)[start : start + size]
                weakref.finalize(view, self._died, start, start + size).atexit = False
                return view
        return None

    def _died(self, start: int, end: int) -> None:
        self.returned.append((start, end))

    def _put_back(self, start: int, end: int) -> None:
        place = bisect.bisect(self.free, (start, end))
        if place < len(self.free) and self.free[place][0] == end:
            end = self.free.pop(place)[1]
        if place and self.free[place - 1][1] == start:
            place -= 1
            start = self.free.pop(place)[0]
        self.free.insert(place, (start, end))


def copied(weights: Tensor) -> Tensor:
    """A copy of uint8 weights, at the beginning of a cache line; small ones share pages with each other."""
    size = max(1, -(-weights.numel() // LINE)) * LINE
    with _lock, torch.inference_mode(False):  # the memory outlives the mode in which it is taken
        views = (arena.take(size) for arena in _arenas)
        view = next((view for view in views if view is not None), None)
        if view is None:
            arena = Arena(max(size, ARENA))
            _arenas.add(arena)
            view = arena.take(size)
        assert view is not None
        memory = torch.frombuffer(view, dtype=torch.uint8)[: weights.numel()]
        return memory.view(weights.shape).copy_(weights)
