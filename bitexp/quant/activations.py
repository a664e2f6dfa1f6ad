"""From a layer's input to what it multiplies: the parameter-free norm, and int8 codes per token."""

from __future__ import annotations

import torch
from torch import Tensor

from bitexp.quant.registry import EPS, Norm


def normalize(x: Tensor, norm: Norm, dim: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Norm over `dim` without parameters: the normed x, and the mean and 1/std its backward needs.

    `layer` subtracts the mean and divides by the standard deviation, `rms` divides by the root mean
    square; both with eps 1e-5 under the root. `none` returns x itself.
    """
    if norm == "none":
        return x, None, None
    if norm == "layer":
        last = features_last(x, dim)
        y, mean, rstd = torch.native_layer_norm(last, [last.shape[-1]], None, None, EPS)
        return features_back(y, dim), mean, rstd
    rstd = torch.rsqrt(x.square().mean(dim, keepdim=True) + EPS)
    return x * rstd, None, rstd


def features_last(x: Tensor, dim: int) -> Tensor:
    """A view with the features in the last dimension."""
    return x if dim == -1 else x.movedim(dim, -1)


def features_back(x: Tensor, dim: int) -> Tensor:
    """The inverse of `features_last`."""
    return x if dim == -1 else x.movedim(-1, dim)


def normalize_backward(grad: Tensor, x: Tensor, mean: Tensor | None, rstd: Tensor, dim: int) -> Tensor:
    """The gradient of `normalize` with respect to x, from x and the saved statistics."""
    if mean is None:
        along = (grad * x).mean(dim, keepdim=True) * rstd.pow(3)
        return (grad * rstd).sub_(x * along)
    g, last = features_last(grad, dim).contiguous(), features_last(x, dim).contiguous()
    out = torch.ops.aten.native_layer_norm_backward(
        g, last, [last.shape[-1]], mean, rstd, None, None, [True, False, False]
    )
    return features_back(out[0], dim)


def absmax_codes(
    x: Tensor, qmax: int, dims: tuple[int, ...], overwrite: bool = False
) -> tuple[Tensor, Tensor]:
    """Integer codes of x by absmax over `dims`: `rint(x * (qmax / absmax))`, and the step.

    `qmax / absmax` is what torch computes for it, `reciprocal(absmax) * qmax`; every backend uses
    this one formula, since any other flips a code in a million. `overwrite` lets it use x's memory.

    Returns:
        int8 codes, and the step `absmax / qmax`, of size 1 along `dims`.
    """
    # two reductions without a copy of x; torch's infinity norm takes ten times as long on the CPU
    largest, smallest = x.amax(dims, keepdim=True), x.amin(dims, keepdim=True)
    absmax = torch.maximum(largest, -smallest).clamp(min=EPS)
    factor = absmax.reciprocal() * qmax
    codes = (x.mul_(factor) if overwrite else x * factor).round_()
    if qmax > 127:  # below that |codes| <= qmax holds by itself: absmax bounds every |x|
        codes = codes.clamp_max_(127)
    # by a tensor: torch divides by a number as it is only on the CPU, on GPUs it takes its reciprocal times
    return codes.to(torch.int8), absmax / torch.full_like(absmax, qmax)
