"""Five tokens or more: int8 codes times packed codes on the tensor cores.

The weights are the left operand (`w @ x^T`): unpacked in registers, they go into the matrix unit from
there, and never through shared memory. Few tokens are split along the inputs, and a second kernel adds
the parts in their order; the parts are integers, so the result does not depend on the split.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitexp.kernels.gpu.blocks import at_row, from_digits, scaled, unpacked
from bitexp.kernels.gpu.configs import Tile, packed_tile
from bitexp.kernels.gpu.launch import EXACT_STEPS, ceil_div, on_device_of, processors, shared_memory, use_asm
from bitexp.kernels.gpu.layout import Packed
from bitexp.kernels.gpu.quantize import Quantized


@triton.jit
def grouped_tile(first, second, FIRST: tl.constexpr):
    """This program's (first, second) tile: FIRST of the first by all of the second share the L2 cache."""
    program = tl.program_id(0)
    group = program // (FIRST * second)
    start = group * FIRST
    height = tl.minimum(first - start, FIRST)
    inside = program % (FIRST * second)
    return start + inside % height, inside // height


@triton.jit
def packed_gemm_kernel(
    x, x_scale, x_sum, w, w_scale, bias, y, M, N, padded, w_bytes, steps,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr, BITS: tl.constexpr,
    CHANNEL: tl.constexpr, BIAS: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    tile_n, tile_m = grouped_tile(tl.cdiv(N, BN), tl.cdiv(M, BM), 8)
    part = tl.program_id(1)
    m = tile_m * BM + tl.arange(0, BM)
    n = tile_n * BN + tl.arange(0, BN)
    BYTES: tl.constexpr = BK * BITS // 8
    first = part * steps
    w_at = at_row(w, tl.where(n < N, n, 0), w_bytes)[:, None] + first * BYTES + tl.arange(0, BYTES)[None, :]
    x_at = at_row(x, tl.where(m < M, m, 0), padded)[:, None] + first * BK + tl.arange(0, BK)[None, :]
    acc = tl.zeros((BN, BM), tl.int32)
    for _ in range(first, tl.minimum(first + steps, padded // BK)):
        digits = unpacked(tl.load(w_at), BN, BK, BITS, ASM)
        acc = tl.dot(digits, tl.trans(tl.load(x_at)), acc, out_dtype=tl.int32)
        w_at += BYTES
        x_at += BK
    inside = (n[:, None] < N) & (m[None, :] < M)
    if SPLIT > 1:
        here = at_row(y, part * M + m, N)[None, :] + n[:, None]
        tl.store(here, acc, mask=inside)
    else:
        total = from_digits(acc, tl.load(x_sum + m, mask=m < M, other=0)[None, :], BITS)
        xs = tl.load(x_scale + m, mask=m < M, other=0.0)[None, :]
        ws = tl.load(w_scale + n, mask=n < N, other=0.0)[:, None] if CHANNEL else tl.load(w_scale)
        b = 0.0
        if BIAS != "none":
            b = tl.load(bias + n, mask=n < N, other=0.0)[:, None]
        out = scaled(total, xs, ws, b, BIAS)
        tl.store(at_row(y, m, N)[None, :] + n[:, None], out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def add_parts_kernel(
    parts, x_scale, x_sum, w_scale, bias, y, M, N,
    SPLIT: tl.constexpr, BN: tl.constexpr, BITS: tl.constexpr, CHANNEL: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros((BN,), tl.int32)
    for part in tl.static_range(SPLIT):
        total += tl.load(at_row(parts, part * M + m, N) + n, mask=n < N, other=0)
    total = from_digits(total, tl.load(x_sum + m), BITS)
    ws = tl.load(w_scale + n, mask=n < N, other=0.0) if CHANNEL else tl.load(w_scale)
    b = 0.0
    if BIAS != "none":
        b = tl.load(bias + n, mask=n < N, other=0.0)
    out = scaled(total, tl.load(x_scale + m), ws, b, BIAS)
    tl.store(at_row(y, m, N) + n, out.to(y.dtype.element_ty), mask=n < N)


def packed_gemm(
    q: Quantized, w: Packed, bias: Tensor | None, bias_kind: str, dtype: torch.dtype, tile: Tile | None = None
) -> Tensor:
    """Codes `[M, padded]` -> `[M, N]`."""
    rows, outputs = q.codes.shape[0], w.outputs
    if q.codes.shape[1] != w.padded:
        raise ValueError(f"codes of {q.codes.shape[1]} inputs meet weights of {w.padded}")
    device = q.codes.device
    y = torch.empty(rows, outputs, dtype=dtype, device=device)
    if not y.numel():
        return y
    tile = tile or packed_tile(rows, outputs, w.padded, w.bits, processors(device), shared_memory(device))
    steps = ceil_div(w.padded // tile.inputs, tile.split)
    split = ceil_div(w.padded // tile.inputs, steps)  # as many parts as have something to do
    parts = torch.empty(split, rows, outputs, dtype=torch.int32, device=device) if split > 1 else y
    how = {"BITS": w.bits, "CHANNEL": w.scale.dim() == 1, "BIAS": bias_kind, **EXACT_STEPS}
    with on_device_of(q.codes):
        packed_gemm_kernel[(ceil_div(outputs, tile.outputs) * ceil_div(rows, tile.tokens), split)](
            q.codes, q.scale, q.total, w.data, w.scale, bias, parts,
            rows, outputs, w.padded, w.data.shape[1], steps,
            BM=tile.tokens, BN=tile.outputs, BK=tile.inputs, SPLIT=split, ASM=use_asm(q.codes),
            num_warps=tile.warps, num_stages=tile.stages, **how,
        )  # fmt: skip
        if split > 1:
            add_parts_kernel[(rows, ceil_div(outputs, 1024))](
                parts, q.scale, q.total, w.scale, bias, y, rows, outputs,
                SPLIT=split, BN=1024, num_warps=4, **how,
            )  # fmt: skip
    return y
