"""The autograd function of a quantized layer: norm, codes, integer product and scales in one node.

The backward is that of `y = (x_q s_x) @ (w_q s_w + b_w)^T + bias` with rounding and clamping taken as the
identity and the scales as constants (straight-through estimator, arXiv 2310.11453 section 2.2): the exact
gradient at the dequantized weights and activations, to which carriers (`estimators.py`) apply other rules.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitexp.quant.activations.int8 import absmax_codes
from bitexp.quant.backend import Call, Grads, Saved
from bitexp.quant.modes import apply_without_binding, no_autocast, plain, transformed
from bitexp.quant.norms import normalize, normalize_backward
from bitexp.quant.product import Quantized, product_grads, scaled_product
from bitexp.quant.spec import Geometry


class QuantizedProduct(torch.autograd.Function):
    """norm, activation codes, integer product and scales in one node of the graph.

    Saves int8 codes instead of the floats that were multiplied. What `backward` needs and `forward`
    computes is returned beside y (not differentiable), as functorch's form of a Function demands.
    Activation codes may be given; then x is normed already.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        w_codes: Tensor,
        w_scale: Tensor,
        w_shift: Tensor | None,
        x_codes: Tensor | None,
        x_scale: Tensor | None,
        call: Call,
    ) -> tuple[Tensor, *tuple[Tensor | None, ...]]:
        b, spec = None if bias is None else bias.float(), call.spec
        if call.fused:
            return call.backend.forward(x, b, w_codes, w_scale, call)
        weights, at = Quantized(w_codes, w_scale, w_shift), Geometry(spec.conv)
        if x_codes is not None:
            y = scaled_product(x_codes, x_scale, weights, b, spec, call.backend)
            return y.to(call.dtype), None, None, None, None
        normed, mean, rstd = normalize(x.float(), spec.norm, at.feature_dim)
        if spec.activations is not None:
            assert spec.absmax is not None
            codes, scale = absmax_codes(normed, spec.absmax, at.scale_dims, overwrite=normed is not x)
        else:  # cloned, since an output of a Function may not be its input
            codes, scale = normed.clone() if normed is x else normed, None
        y = scaled_product(codes, scale, weights, b, spec, call.backend)
        return y.to(call.dtype), codes, scale, mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        x, weight, bias, w_codes, w_scale, w_shift, x_codes, x_scale, call = inputs
        _, codes, scale, mean, rstd = output
        ctx.mark_non_differentiable(*(t for t in output[1:] if t is not None))
        ctx.set_materialize_grads(False)
        if x_codes is not None:
            codes, scale = x_codes, x_scale
        kept_x = None if call.spec.norm == "none" else x
        ctx.save_for_backward(kept_x, codes, scale, w_codes, w_scale, w_shift, mean, rstd)
        ctx.call = call
        ctx.dtypes = (x.dtype, weight.dtype, None if bias is None else bias.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 9
        x, codes, scale, w_codes, w_scale, w_shift, mean, rstd = ctx.saved_tensors
        call: Call = ctx.call
        needed = ctx.needs_input_grad[:3]
        with no_autocast(grad):
            saved = (codes, scale, mean, rstd)
            # a graph of the backward itself (create_graph) needs operators that torch can differentiate
            if call.fused and plain(grad) and not torch.is_grad_enabled():
                grads = call.backend.backward(grad, x, saved, w_codes, w_scale, call, needed)
            else:
                weights = Quantized(w_codes, w_scale, w_shift)
                grads = straight_through(grad, x, saved, weights, call, needed)
        cast = (None if g is None else g.to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True))
        return (*cast, None, None, None, None, None, None)


def straight_through(
    grad: Tensor,
    x: Tensor | None,
    saved: Saved,
    weights: Quantized,
    call: Call,
    needed: tuple[bool, bool, bool],
) -> Grads:
    """The gradients by torch's operators."""
    codes, scale, mean, rstd = saved
    spec = call.spec
    at = Geometry(spec.conv)
    grad = grad.float()
    grad_b = None
    if needed[2]:
        per_output = grad
        if spec.bias == "scaled":
            assert scale is not None
            per_output = grad * (scale * at.spread(weights.scale))
        grad_b = at.sum_outputs(per_output)
    inputs = codes if scale is None else codes * scale
    dtype = call.grad_dtype
    grad_x, grad_w = product_grads(
        grad.to(dtype), inputs.to(dtype), weights.dequantized().to(dtype), spec, needed[0], needed[1]
    )
    if grad_x is not None and x is not None:
        assert rstd is not None
        grad_x = normalize_backward(grad_x.float(), x.float(), mean, rstd, at.feature_dim)
    return grad_x, grad_w, grad_b


_direct = apply_without_binding(QuantizedProduct)


def quantized_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    quantized: Quantized,
    call: Call,
    x_codes: Tensor | None = None,
    x_scale: Tensor | None = None,
) -> Tensor:
    """The output of `QuantizedProduct`, by the backend's own step where it takes this one."""
    codes, scale, shift = quantized
    if transformed():
        call = call._replace(fused=False)
        return QuantizedProduct.apply(x, weight, bias, codes, scale, shift, x_codes, x_scale, call)[0]
    if call.fused and not (
        x_codes is None and shift is None and plain(x) and call.backend.takes(x, weight, scale, call.spec)
    ):
        call = call._replace(fused=False)
    return _direct(x, weight, bias, codes, scale, shift, x_codes, x_scale, call)[0]
