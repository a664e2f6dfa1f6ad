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


@part
def halves(address, count):  # type: ignore[no-untyped-def]
    """The bits of bf16 numbers at an address."""
    return carray(pointer(address), count, np.uint16)


@part
def narrow(value):  # type: ignore[no-untyped-def]
    """The bits of the nearest bf16 number, half to even, as torch has it."""
    bits = np.float32(value).view(np.uint32)
    if np.uint32(bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):
        return np.uint16(0x7FC0)  # NaN, which rounding would carry over to the sign
    even = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + even) >> np.uint32(16))


@part
def wide(bits):  # type: ignore[no-untyped-def]
    """The fp32 number that is a bf16 number of these bits."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@part
def wide_row(address, size, count, room):  # type: ignore[no-untyped-def]
    """Where the numbers of a row are as fp32: there, or, of 2 bytes (bf16), in `room`, where they come to."""
    if size == 4:
        return address
    row = halves(address, count)
    for j in range(count):
        room[j] = wide(row[j])
    return np.int64(room.ctypes.data)
