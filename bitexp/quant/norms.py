"""The norms without parameters that precede quantization, and their backward."""

from __future__ import annotations

import torch
from torch import Tensor

from bitexp.quant.spec import EPS, Norm


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
