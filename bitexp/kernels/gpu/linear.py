"""A packed linear layer on a GPU: the kernel for the number of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from bitexp.kernels.gpu.gemm import packed_gemm
from bitexp.kernels.gpu.gemv import ROWS, gemv
from bitexp.kernels.gpu.layout import Packed
from bitexp.kernels.gpu.quantize import quantize
from bitexp.quant.spec import Norm, rows


def packed_linear(
    x: Tensor,
    w: Packed,
    bias: Tensor | None,
    absmax: int,
    scaled_bias: bool,
    norm: Norm = "none",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Floats `[..., K]` -> `[..., N]` in `dtype`; `norm` is taken of x before it is quantized.

    Raises:
        ValueError: x has another number of inputs than the weights, or lies on another device.
    """
    if x.shape[-1] != w.inputs:
        raise ValueError(f"x has {x.shape[-1]} features, the packed weights have {w.inputs} inputs")
    if x.device != w.data.device:
        raise ValueError(f"x lies on {x.device}, the packed weights on {w.data.device}")
    kind = "none" if bias is None else "scaled" if scaled_bias else "plain"
    tokens, bias = rows(x), None if bias is None else bias.contiguous()
    if tokens.stride(-1) != 1:
        tokens = tokens.contiguous()
    if 0 < len(tokens) <= ROWS:
        y = gemv(tokens, w, bias, kind, absmax, norm, dtype)
    else:
        y = packed_gemm(quantize(tokens, absmax, w.padded, norm), w, bias, kind, dtype)
    return y.reshape(*x.shape[:-1], w.outputs)
