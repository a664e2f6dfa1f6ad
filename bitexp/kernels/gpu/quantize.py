"""Norm and int8 codes of activations in one pass over each row, and the backward of the norm."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitexp.kernels.gpu.blocks import activation_bits, at_row, code_factor, normed, row_statistics
from bitexp.kernels.gpu.configs import power_of_two
from bitexp.kernels.gpu.launch import EXACT_STEPS, on_device_of
from bitexp.quant.spec import EPS, Norm


class Quantized(NamedTuple):
    """int8 codes `[M, padded]` (zero beyond K), their scales and sums `[M]`; mean and 1/std of a norm."""

    codes: Tensor
    scale: Tensor
    total: Tensor
    mean: Tensor | None
    rstd: Tensor | None


@triton.jit
def quantize_kernel(
    x, codes, scale, total, mean_out, rstd_out, K, padded, x_stride,
    QMAX: tl.constexpr, EPS: tl.constexpr, NORM: tl.constexpr, SAVE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    x = at_row(x, row, x_stride)
    codes = at_row(codes, row, padded)
    mean, rstd, absmax = row_statistics(x, K, EPS, NORM, BLOCK)
    factor = code_factor(absmax, QMAX)
    at = tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK,), tl.int32)
    for k in range(0, padded, BLOCK):
        q = activation_bits(normed(x, k + at, K, mean, rstd, NORM), factor, QMAX)
        q = (q << 24) >> 24
        tl.store(codes + k + at, q.to(tl.int8), mask=k + at < padded)
        sums += q
    tl.store(scale + row, tl.div_rn(absmax, QMAX * 1.0))
    tl.store(total + row, tl.sum(sums, 0))
    if SAVE:
        tl.store(rstd_out + row, rstd)
        if NORM == "layer":
            tl.store(mean_out + row, mean)


def quantize(x: Tensor, qmax: int, padded: int, norm: Norm = "none", save: bool = False) -> Quantized:
    """Codes of the normed rows of x.

    Args:
        x: floats `[M, K]`, the last dimension contiguous.
        padded: columns of the codes, at least K.
        save: also give what `norm_backward` needs.
    """
    rows, inputs = x.shape
    if padded < inputs or (inputs > 1 and x.stride(-1) != 1):
        raise ValueError(f"{inputs} inputs with strides {x.stride()} do not fit {padded} contiguous columns")
    codes = torch.empty(rows, padded, dtype=torch.int8, device=x.device)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    total = torch.empty(rows, dtype=torch.int32, device=x.device)
    mean = torch.empty_like(scale) if save and norm == "layer" else None
    rstd = torch.empty_like(scale) if save and norm != "none" else None
    if rows:
        block = row_block(padded)
        with on_device_of(x):
            quantize_kernel[(rows,)](
                x, codes, scale, total, mean, rstd, inputs, padded, x.stride(0),
                QMAX=qmax, EPS=EPS, NORM=norm, SAVE=rstd is not None, BLOCK=block,
                num_warps=row_warps(block), **EXACT_STEPS,
            )  # fmt: skip
    return Quantized(codes, scale, total, mean, rstd)


@triton.jit
def norm_backward_kernel(
    grad, x, mean, rstd, out, K, grad_stride, x_stride, NORM: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0)
    grad = at_row(grad, row, grad_stride)
    x = at_row(x, row, x_stride)
    out = at_row(out, row, K)
    at = tl.arange(0, BLOCK)
    r = tl.load(rstd + row)
    m = 0.0
    if NORM == "layer":
        m = tl.load(mean + row)
    along = tl.zeros((BLOCK,), tl.float32)
    sums = tl.zeros((BLOCK,), tl.float32)
    for k in range(0, K, BLOCK):
        g = tl.load(grad + k + at, mask=k + at < K, other=0.0).to(tl.float32)
        v = tl.load(x + k + at, mask=k + at < K, other=0.0).to(tl.float32)
        along += g * (v - m)
        sums += g
    along_all = tl.sum(along, 0) / K * r * r
    grad_mean = 0.0
    if NORM == "layer":
        grad_mean = tl.sum(sums, 0) / K
    for k in range(0, K, BLOCK):
        g = tl.load(grad + k + at, mask=k + at < K, other=0.0).to(tl.float32)
        v = tl.load(x + k + at, mask=k + at < K, other=0.0).to(tl.float32)
        tl.store(out + k + at, (g - grad_mean - (v - m) * along_all) * r, mask=k + at < K)


def norm_backward(grad: Tensor, x: Tensor, norm: Norm, mean: Tensor | None, rstd: Tensor | None) -> Tensor:
    """The gradient with respect to x, in x's dtype, from that of the normed x; all `[M, K]`.

    `mean` and `rstd` are what `quantize(..., save=True)` gave.
    """
    if norm == "none":
        return grad.to(x.dtype)
    contiguous = x.shape[-1] == 1 or x.stride(-1) == grad.stride(-1) == 1
    if grad.shape != x.shape or not contiguous:
        raise ValueError(
            f"gradient {list(grad.shape)} and x {list(x.shape)} must be alike, with rows contiguous"
        )
    rows, inputs = x.shape
    out = torch.empty(rows, inputs, dtype=x.dtype, device=x.device)
    if rows:
        block = row_block(inputs)
        with on_device_of(x):
            norm_backward_kernel[(rows,)](
                grad, x, mean, rstd, out, inputs, grad.stride(0), x.stride(0), NORM=norm, BLOCK=block,
                num_warps=row_warps(block), **EXACT_STEPS,
            )  # fmt: skip
    return out


def row_block(columns: int) -> int:
    """How many elements of a row a program holds at once."""
    return power_of_two(columns, 32, 4096)


def row_warps(block: int) -> int:
    """Warps for so many elements: eight for each thread, more where that takes over 256 threads."""
    return min(max(block // 256, 1), 8)
