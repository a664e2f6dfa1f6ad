"""The straight-through gradients of a quantized layer by torch's operators.

Those of a linear layer are made of some tokens at a time, which stay in the cache. What the parts add to a
gradient is added in their order, so a kernel that takes the same parts gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bitexp.quant.backend import Call, Grads, Saved
from bitexp.quant.norms import normalize_backward
from bitexp.quant.product import Quantized, conv_grads
from bitexp.quant.spec import Geometry, rows

PART = 2**19
"""Floats of a part in its widest place: 2 MiB. It depends on nothing else, or gradients would."""


def width(*features: int) -> int:
    """Tokens in a part."""
    return max(64, PART // max(features))


def token_parts(tokens: int, *features: int) -> Iterator[slice]:
    """Slices of the tokens: at least one, which may be empty."""
    size = width(*features)
    return (slice(start, min(start + size, tokens)) for start in range(0, max(tokens, 1), size))


def straight_through(
    grad: Tensor,
    x: Tensor | None,
    saved: Saved,
    weights: Quantized,
    call: Call,
    needed: tuple[bool, bool, bool],
) -> Grads:
    """The gradients with respect to x, the latent weights and the bias.

    Args:
        x: what a norm was taken of; None without one.
    """
    spec, conv, at = call.spec, call.spec.conv, Geometry(call.spec.conv)
    if conv is None:
        return of_linear(grad, x, saved, weights, call, needed)
    codes, scale, mean, rstd = saved
    grad_b = None
    if needed[2]:
        per_output = grad.float()
        if spec.bias == "scaled":
            assert scale is not None
            per_output = per_output * (scale * at.spread(weights.scale))
        grad_b = at.sum_outputs(per_output)
    inputs = codes if scale is None else codes * scale
    dtype = call.grad_dtype
    grad_x, grad_w = conv_grads(
        grad.to(dtype), inputs.to(dtype), weights.dequantized().to(dtype), conv, needed[0], needed[1]
    )
    if grad_x is not None and x is not None:
        assert rstd is not None
        grad_x = normalize_backward(grad_x.float(), x.float(), mean, rstd, at.feature_dim)
    return grad_x, grad_w, grad_b


def of_linear(
    grad: Tensor,
    x: Tensor | None,
    saved: Saved,
    weights: Quantized,
    call: Call,
    needed: tuple[bool, bool, bool],
) -> Grads:
    """Those of a linear layer."""
    dtype = call.grad_dtype
    of_outputs, codes, of_x = rows(grad), rows(saved[0]), None if x is None else rows(x)
    scale, mean, rstd = (None if v is None else v.reshape(-1, 1) for v in saved[1:])
    if scale is not None:  # a learned one is that of all tokens
        scale = scale.expand(len(codes), 1)
    latent = weights.dequantized().to(dtype)
    parts_x: list[Tensor] = []
    grad_w = grad_b = None
    for part in token_parts(len(codes), *weights.codes.shape):
        factor = of_outputs[part].to(dtype).contiguous()
        if needed[2]:
            per_output = of_outputs[part].float()
            if call.spec.bias == "scaled":
                assert scale is not None
                per_output = per_output * (scale[part] * weights.scale)
            grad_b = added(grad_b, per_output.sum(0))
        if needed[1]:
            inputs = codes[part] if scale is None else codes[part] * scale[part]
            grad_w = add_product(grad_w, factor, inputs.to(dtype).contiguous())
        if needed[0]:
            of_part = (factor @ latent).float()
            if of_x is not None:
                assert rstd is not None
                at = None if mean is None else mean[part]
                of_part = normalize_backward(of_part, of_x[part].float(), at, rstd[part], -1)
            parts_x.append(of_part)
    grad_x = None
    if needed[0]:
        grad_x = (parts_x[0] if len(parts_x) == 1 else torch.cat(parts_x)).reshape(saved[0].shape)
    return grad_x, grad_w, grad_b


def added(total: Tensor | None, more: Tensor) -> Tensor:
    """The sum, of nothing at first."""
    return more if total is None else total + more


def add_product(total: Tensor | None, grad: Tensor, inputs: Tensor) -> Tensor:
    """Adds `grad^T @ inputs`, first to nothing; the total is fp32, whatever the factors are."""
    if total is None:
        return (grad.t() @ inputs).float()
    if grad.dtype == total.dtype:
        return torch.addmm(total, grad.t(), inputs)
    return total + (grad.t() @ inputs)
