"""Arrays at addresses, for compiled functions that are called with integers. Importing this needs numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

from bitexp.kernels.cpu.dots import I8, Builder, Value

part = njit(nogil=True, boundscheck=False, error_model="numpy")
"""Compiled together with what calls it; floats are rounded after every operation."""


@intrinsic
def pointer(context, address):  # type: ignore[no-untyped-def]
    """An address as a pointer."""

    def emit(_: Any, b: Builder, __: Any, values: list[Value]) -> Value:
        return b.inttoptr(values[0], I8.as_pointer())

    return types.voidptr(types.int64), emit


@part
def floats(address, count):  # type: ignore[no-untyped-def]
    """fp32 numbers at an address."""
    return carray(pointer(address), count, np.float32)


@part
def matrix(address, rows, columns):  # type: ignore[no-untyped-def]
    """fp32 numbers at an address."""
    return carray(pointer(address), (rows, columns), np.float32)


@part
def bytes_at(address, count):  # type: ignore[no-untyped-def]
    """int8 numbers at an address."""
    return carray(pointer(address), count, np.int8)


@part
def integers(address, count):  # type: ignore[no-untyped-def]
    """int32 numbers at an address."""
    return carray(pointer(address), count, np.int32)
