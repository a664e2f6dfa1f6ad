"""The norms without parameters that precede quantization, and their backward.

On the CPU their sums are added in the order of `ordered_sum`, so that compiled kernels, which add in the same
order, give the same bits as torch's operators. On a GPU the norm is torch's own in every kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitexp.quant.modes import recorded
from bitexp.quant.spec import EPS, Norm
from bitexp.quant.sums import copied_rows, few, few_sums, ordered_sum

Normed = tuple[Tensor, Tensor | None, Tensor | None]
"""what a norm gives: the normed x, and the mean and 1/std that its backward needs"""


def normalize(x: Tensor, norm: Norm, dim: int) -> Normed:
    """Norm over `dim` without parameters: the normed x, and the mean and 1/std its backward needs.

    `layer` subtracts the mean and divides by the standard deviation, `rms` divides by the root mean
    square; both with eps 1e-5 under the root. `none` returns x itself.
    """
    if norm == "none":
        return x, None, None
    if not x.is_cpu:
        return native_norm(x, norm, dim)
    if few(dim, x):
        return few_normalized(x, norm)
    share, mean = 1 / x.shape[dim], None
    if norm == "layer":
        mean = ordered_sum(dim, x) * share
        x = x - mean
    # the root in fp64, whose rounding to fp32 is the right one: torch's own in fp32 is off by a bit at times
    rstd = (ordered_sum(dim, x, x) * share + EPS).double().sqrt().float().reciprocal()
    return (x * rstd if mean is None else x.mul_(rstd)), mean, rstd


@np.errstate(all="ignore")  # as torch, which says nothing where a number is not finite
def few_normalized(x: Tensor, norm: Norm) -> Normed:
    """`normalize` of a few numbers by numpy, whose calls are shorter than torch's."""
    y, rows = copied_rows(x)
    share, mean, shape = 1 / x.shape[-1], None, (*x.shape[:-1], 1)
    if norm == "layer":
        means = few_sums(rows.copy()) * share
        rows -= means
        mean = torch.from_numpy(means).reshape(shape)
    rstd = 1 / np.sqrt(few_sums(rows * rows) * share + EPS)
    rows *= rstd
    return y, mean, torch.from_numpy(rstd).reshape(shape)


def normalize_backward(grad: Tensor, x: Tensor, mean: Tensor | None, rstd: Tensor, dim: int) -> Tensor:
    """The gradient of `normalize` with respect to x, from x and the saved statistics."""
    if not x.is_cpu:
        return native_norm_backward(grad, x, mean, rstd, dim)
    share = 1 / x.shape[dim]
    normed = x * rstd if mean is None else (x - mean).mul_(rstd)
    along = ordered_sum(dim, grad, normed).mul_(share)
    if mean is not None:
        grad = grad - ordered_sum(dim, grad) * share
    return (grad - normed * along).mul_(rstd)


def native_norm(x: Tensor, norm: Norm, dim: int) -> Normed:
    """`normalize` by torch's own functions, differentiable."""
    if norm == "none":
        return x, None, None
    if norm == "layer":
        last = features_last(x, dim)
        y, mean, rstd = torch.native_layer_norm(last, [last.shape[-1]], None, None, EPS)
        return features_back(y, dim), mean, rstd
    rstd = torch.rsqrt(x.square().mean(dim, keepdim=True) + EPS)
    return x * rstd, None, rstd


def native_norm_backward(grad: Tensor, x: Tensor, mean: Tensor | None, rstd: Tensor, dim: int) -> Tensor:
    """The gradient of `native_norm` with respect to x."""
    if mean is None:
        along = (grad * x).mean(dim, keepdim=True) * rstd.pow(3)
        return (grad * rstd).sub_(x * along)
    g, last = features_last(grad, dim).contiguous(), features_last(x, dim).contiguous()
    out = torch.ops.aten.native_layer_norm_backward(
        g, last, [last.shape[-1]], mean, rstd, None, None, [True, False, False]
    )
    return features_back(out[0], dim)


def features_last(x: Tensor, dim: int) -> Tensor:
    """A view with the features in the last dimension."""
    return x if dim == -1 else x.movedim(dim, -1)


def features_back(x: Tensor, dim: int) -> Tensor:
    """The inverse of `features_last`."""
    return x if dim == -1 else x.movedim(-1, dim)


class DifferentiableNorm:
    """The norm of x over `dim` by operators that torch differentiates, and its backward by the same."""

    def __init__(self, x: Tensor, norm: Norm, dim: int) -> None:
        self.centered, self.dim = norm == "layer", dim
        x = self.without_mean(x)
        self.rstd = torch.rsqrt(x.square().mean(dim, keepdim=True) + EPS)
        self.value = x * self.rstd

    def without_mean(self, x: Tensor) -> Tensor:
        """x less its mean, in a layer norm."""
        return x - x.mean(self.dim, keepdim=True) if self.centered else x

    def backward(self, grad: Tensor) -> Tensor:
        """The gradient with respect to x, from that with respect to `value`."""
        along = (grad * self.value).mean(self.dim, keepdim=True)
        return self.rstd * (self.without_mean(grad) - self.value * along)


class NormFunction(torch.autograd.Function):
    """A norm as one node of the graph, whoever computes it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, norm: Norm, dim: int, function: Callable[..., Normed]) -> Normed:
        return function(x, norm, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Normed) -> None:
        x, ctx.norm, ctx.dim, _ = inputs
        ctx.mark_non_differentiable(*(t for t in output[1:] if t is not None))
        ctx.save_for_backward(x, *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        x, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # a graph of the backward itself
            return DifferentiableNorm(x, ctx.norm, ctx.dim).backward(grad), None, None, None
        return normalize_backward(grad, x, mean, rstd, ctx.dim), None, None, None


def normed(x: Tensor, norm: Norm, dim: int, function: Callable[..., Normed] = normalize) -> Tensor:
    """x after its norm, with a graph where autograd records one; `function` is `normalize` or its equal."""
    if norm == "none":
        return x
    if recorded(x):
        y: Tensor = NormFunction.apply(x, norm, dim, function)[0]
        return y
    return function(x, norm, dim)[0]
