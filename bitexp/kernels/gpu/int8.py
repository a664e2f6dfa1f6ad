"""int8 codes times int8 codes: the product of the training forward, alone or with the scales."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitexp.kernels.gpu.blocks import at_row, scaled
from bitexp.kernels.gpu.configs import Tile, int8_tile
from bitexp.kernels.gpu.gemm import grouped_tile
from bitexp.kernels.gpu.launch import EXACT_STEPS, ceil_div, on_device_of, shared_memory


@triton.jit
def int8_gemm_kernel(
    x, w, x_scale, w_scale, bias, y, M, N, K, x_stride, w_stride,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr, SCALE: tl.constexpr,
    CHANNEL: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    tile_m, tile_n = grouped_tile(tl.cdiv(M, BM), tl.cdiv(N, BN), 8)
    m = tile_m * BM + tl.arange(0, BM)
    n = tile_n * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    x_at = at_row(x, tl.where(m < M, m, 0), x_stride)[:, None] + k[None, :]
    w_at = at_row(w, tl.where(n < N, n, 0), w_stride)[:, None] + k[None, :]
    acc = tl.zeros((BM, BN), tl.int32)
    for start in range(0, K, BK):
        if EVEN:
            a, b = tl.load(x_at), tl.load(w_at)
        else:
            a = tl.load(x_at, mask=(start + k < K)[None, :], other=0)
            b = tl.load(w_at, mask=(start + k < K)[None, :], other=0)
        acc = tl.dot(a, tl.trans(b), acc, out_dtype=tl.int32)
        x_at += BK
        w_at += BK
    if SCALE:
        xs = tl.load(x_scale + m, mask=m < M, other=0.0)[:, None]
        ws = tl.load(w_scale + n, mask=n < N, other=0.0)[None, :] if CHANNEL else tl.load(w_scale)
        add = 0.0
        if BIAS != "none":
            add = tl.load(bias + n, mask=n < N, other=0.0)[None, :]
        out = scaled(acc, xs, ws, add, BIAS)
    else:
        out = acc.to(tl.float32)
    here = at_row(y, m, N)[:, None] + n[None, :]
    tl.store(here, out.to(y.dtype.element_ty), mask=(m[:, None] < M) & (n[None, :] < N))


def int8_gemm(
    x: Tensor,
    w: Tensor,
    x_scale: Tensor | None = None,
    w_scale: Tensor | None = None,
    bias: Tensor | None = None,
    bias_kind: str = "none",
    dtype: torch.dtype = torch.float32,
    tile: Tile | None = None,
) -> Tensor:
    """int8 `[..., K]` times int8 `[N, K]` -> `[..., N]`: sums, or `sums * (x_scale * w_scale) + bias`.

    Args:
        x_scale: one for each row of x, or None for the bare sums; `w_scale` `[]` or `[N]` goes with it.
        dtype: of the output; the sums are exact in fp32 alone.
        bias_kind: `none`, `plain`, or `scaled` (added to the sum, before the scales).
    """
    outputs, inputs = w.shape
    if x.shape[-1] != inputs or x.dtype != torch.int8 or w.dtype != torch.int8:
        raise ValueError(f"no product of {x.dtype} {list(x.shape)} and {w.dtype} {list(w.shape)}")
    # in its final shape: a view of the result could not be changed in place under autograd
    y = torch.empty(*x.shape[:-1], outputs, dtype=dtype, device=x.device)
    if not y.numel():
        return y
    x = x.reshape(-1, inputs)
    rows = x.shape[0]
    x = x if x.stride(-1) == 1 else x.contiguous()
    w = w if w.stride(-1) == 1 else w.contiguous()
    # an expanded scale has stride 0, which no kernel sees
    x_scale, w_scale, bias = (None if v is None else v.contiguous() for v in (x_scale, w_scale, bias))
    tile = tile or int8_tile(rows, outputs, inputs, shared_memory(x.device))
    with on_device_of(x):
        int8_gemm_kernel[(ceil_div(rows, tile.tokens) * ceil_div(outputs, tile.outputs),)](
            x, w, x_scale, w_scale, bias, y, rows, outputs, inputs, x.stride(0), w.stride(0),
            BM=tile.tokens, BN=tile.outputs, BK=tile.inputs, EVEN=inputs % tile.inputs == 0,
            SCALE=x_scale is not None, CHANNEL=w_scale is not None and w_scale.dim() == 1, BIAS=bias_kind,
            num_warps=tile.warps, num_stages=tile.stages, **EXACT_STEPS,
        )  # fmt: skip
    return y
