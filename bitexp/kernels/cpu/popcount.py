"""Signs times signs: 64 products by one exclusive or and one count of bits.

    sum_k a_k b_k = inputs - 2 popcount(a ^ b), the bits of a and b being set where they are +1

Import this module only where `jit.missing()` is None.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from bitexp.kernels.cpu.jit import compiled


@intrinsic
def popcount(_: Any, word: Any) -> Any:
    """The bits of a uint64 that are set."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: list[ir.Value]) -> ir.Value:
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), generate


def words_of(codes: Tensor) -> Tensor:
    """int8 signs `[..., inputs]` as bits, int64 `[..., words]`; the bits beyond the inputs are zero."""
    bits = np.packbits(codes.numpy() > 0, axis=-1, bitorder="little")
    words = np.zeros((*bits.shape[:-1], -(-bits.shape[-1] // 8)), dtype=np.int64)
    words.view(np.uint8)[..., : bits.shape[-1]] = bits
    return torch.from_numpy(words)


def sign_product(codes: Tensor, weights: Tensor) -> Tensor:
    """The exact sums of int8 signs `[..., inputs]` times words `[outputs, words]`, fp32 `[..., outputs]`."""
    *lead, inputs = codes.shape
    words = words_of(codes.reshape(-1, inputs))
    sums = torch.empty(len(words), len(weights), dtype=torch.float32)
    count(words.numpy().view(np.uint64), weights.numpy().view(np.uint64), inputs, sums.numpy())
    return sums.reshape(*lead, len(weights))


@compiled
def count(
    left: NDArray[np.uint64], right: NDArray[np.uint64], inputs: int, sums: NDArray[np.float32]
) -> None:
    """One sum after the other."""
    for token in range(left.shape[0]):
        for output in range(right.shape[0]):
            differing = np.uint64(0)
            for word in range(left.shape[1]):
                differing += popcount(left[token, word] ^ right[output, word])
            sums[token, output] = np.float32(np.int64(inputs) - 2 * np.int64(differing))
