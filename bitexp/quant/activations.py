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
    last = x.movedim(dim, -1)
    if norm == "layer":
        y, mean, rstd = torch.native_layer_norm(last, [last.shape[-1]], None, None, EPS)
        return y.movedim(-1, dim), mean, rstd
    rstd = torch.rsqrt(last.square().mean(-1, keepdim=True) + EPS)
    return (last * rstd).movedim(-1, dim), None, rstd


def normalize_backward(
    grad: Tensor, x: Tensor, mean: Tensor | None, rstd: Tensor | None, dim: int
) -> Tensor:
    """The gradient of `normalize` with respect to x, from x and the saved statistics."""
    if rstd is None:
        return grad
    g, last = grad.movedim(dim, -1), x.movedim(dim, -1)
    if mean is not None:
        width = [last.shape[-1]]
        out = torch.ops.aten.native_layer_norm_backward(
            g.contiguous(), last.contiguous(), width, mean, rstd, None, None, [True, False, False]
        )[0]
    else:
        normed = last * rstd
        out = (g - normed * (g * normed).mean(-1, keepdim=True)) * rstd
    return out.movedim(-1, dim)


def absmax_codes(x: Tensor, qmax: int, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Integer codes of x by absmax over `dims`: `rint(x * (qmax / absmax))`, and the step.

    `qmax / absmax` is what torch computes for it, `reciprocal(absmax) * qmax`; every backend uses
    this one formula, since any other flips a code in a million.

    Returns:
        the codes as fp32 integers in -qmax..min(qmax, 127), and the step `absmax / qmax`, of size 1
        along `dims`.
    """
    absmax = torch.linalg.vector_norm(x, torch.inf, dims, keepdim=True).clamp(min=EPS)
    codes = (x * (absmax.reciprocal() * qmax)).round_()
    if qmax > 127:  # below that |codes| <= qmax holds by itself: absmax bounds every |x|
        codes = codes.clamp_(max=127)
    return codes, absmax / qmax
