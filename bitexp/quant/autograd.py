"""The autograd function of a quantized layer: norm, codes, integer product and scales in one node.

The backward is that of `y = (x_q s_x) @ (w_q s_w)^T + bias` with rounding and clamping taken as the
identity and the steps as constants (straight-through estimator, arXiv 2310.11453 section 2.2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitexp.quant.activations.absmax import absmax_codes
from bitexp.quant.backend import Grads, Saved, Spec
from bitexp.quant.modes import no_autocast, plain, transformed
from bitexp.quant.norms import normalize, normalize_backward
from bitexp.quant.product import dequantize, product_grads, scaled_product
from bitexp.quant.spec import Geometry


class QuantizedProduct(torch.autograd.Function):
    """norm, activation codes, integer product and scales in one node of the graph.

    Saves int8 codes instead of the floats that were multiplied. What `backward` needs and `forward`
    computes is returned beside y (not differentiable), as functorch's form of a Function demands.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        w_codes: Tensor,
        w_scale: Tensor,
        spec: Spec,
    ) -> tuple[Tensor, *Saved]:
        b = None if bias is None else bias.float()
        if spec.fused is not None:
            return spec.fused.forward(x, b, w_codes, w_scale, spec)
        at = Geometry(spec.conv)
        normed, mean, rstd = normalize(x.float(), spec.norm, at.feature_dim)
        if spec.qmax:
            codes, scale = absmax_codes(normed, spec.qmax, at.scale_dims, overwrite=normed is not x)
        else:  # cloned, since an output of a Function may not be its input
            codes, scale = normed.clone() if normed is x else normed, None
        y = scaled_product(codes, scale, w_codes, w_scale, b, spec.conv, spec.scaled_bias, spec.product)
        return y.to(spec.dtype), codes, scale, mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        x, weight, bias, w_codes, w_scale, spec = inputs
        _, codes, scale, mean, rstd = output
        ctx.mark_non_differentiable(*(t for t in output[1:] if t is not None))
        ctx.set_materialize_grads(False)
        kept_x = None if spec.norm == "none" else x
        ctx.save_for_backward(kept_x, codes, scale, w_codes, w_scale, mean, rstd)
        ctx.spec = spec
        ctx.dtypes = (x.dtype, weight.dtype, None if bias is None else bias.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 6
        x, codes, scale, w_codes, w_scale, mean, rstd = ctx.saved_tensors
        spec: Spec = ctx.spec
        backward = straight_through
        # a graph of the backward itself (create_graph) needs operators that torch can differentiate
        if spec.fused is not None and plain(grad) and not torch.is_grad_enabled():
            backward = spec.fused.backward
        with no_autocast(grad):
            saved = (codes, scale, mean, rstd)
            grads = backward(grad, x, saved, w_codes, w_scale, spec, ctx.needs_input_grad[:3])
        cast = (None if g is None else g.to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True))
        return (*cast, None, None, None)


def straight_through(
    grad: Tensor,
    x: Tensor | None,
    saved: Saved,
    w_codes: Tensor,
    w_scale: Tensor,
    spec: Spec,
    needed: tuple[bool, bool, bool],
) -> Grads:
    """The gradients by torch's operators."""
    codes, scale, mean, rstd = saved
    at = Geometry(spec.conv)
    grad = grad.float()
    grad_b = None
    if needed[2]:
        per_output = grad
        if spec.scaled_bias:
            assert scale is not None
            per_output = grad * (scale * at.spread(w_scale))
        grad_b = at.sum_outputs(per_output)
    inputs = codes if scale is None else codes * scale
    dtype, weights = spec.grad_dtype, dequantize(w_codes, w_scale)
    grad_x, grad_w = product_grads(
        grad.to(dtype), inputs.to(dtype), weights.to(dtype), spec.conv, needed[0], needed[1]
    )
    if grad_x is not None and x is not None:
        assert rstd is not None
        grad_x = normalize_backward(grad_x.float(), x.float(), mean, rstd, at.feature_dim)
    return grad_x, grad_w, grad_b


_direct = super(torch.autograd.Function, QuantizedProduct).apply


def quantized_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, w_codes: Tensor, w_scale: Tensor, spec: Spec
) -> Tensor:
    """The output of `QuantizedProduct`.

    Outside of transforms and compilation it goes past `Function.apply`, which binds the arguments
    against the signature at every call: as costly as the norm of a small layer.
    """
    if transformed():
        spec = spec._replace(fused=None)
        return QuantizedProduct.apply(x, weight, bias, w_codes, w_scale, spec)[0]
    if spec.fused is not None and not (plain(x) and spec.fused.takes(x, weight, w_scale, spec)):
        spec = spec._replace(fused=None)
    return _direct(x, weight, bias, w_codes, w_scale, spec)[0]
