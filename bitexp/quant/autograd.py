"""The autograd function of a quantized layer: norm, codes, integer product and scales in one node.

The backward is that of `y = (x_q s_x) @ (w_q s_w + b_w)^T + bias` with rounding and clamping taken as the
identity and the scales as constants (straight-through estimator, arXiv 2310.11453 section 2.2): the exact
gradient at the dequantized weights and activations, to which carriers (`estimators.py`) apply other rules.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from bitexp.quant.absmax import absmax_codes
from bitexp.quant.backend import Call, Grads
from bitexp.quant.backward import straight_through
from bitexp.quant.modes import apply_without_binding, autocasts, followed, in_memory, no_autocast
from bitexp.quant.product import Quantized, scaled_product
from bitexp.quant.second_order import differentiable
from bitexp.quant.spec import Geometry


class QuantizedProduct(torch.autograd.Function):
    """norm, activation codes, integer product and scales in one node of the graph.

    Saves int8 codes instead of the floats that were multiplied. What `backward` needs and `forward`
    computes is returned beside y (not differentiable), as functorch's form of a Function demands.
    Activation codes may be given; then x is normed already.

    The gradient of a gradient goes through x and the latent weights again (`second_order.py`). Without a norm
    x is not kept, so `forward` returns `link` as well: zeros in its place, whose gradient is that of x.
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
        link = x.new_zeros(()).expand(x.shape) if spec.norm == "none" else None
        if call.fused:
            return *call.backend.forward(x, b, w_codes, w_scale, call), link
        weights, at = Quantized(w_codes, w_scale, w_shift), Geometry(spec.conv)
        if x_codes is not None:
            y = scaled_product(x_codes, x_scale, weights, b, spec, call.backend)
            return y.to(call.dtype), None, None, None, None, link
        normed, mean, rstd = call.backend.normalize(x.float(), spec.norm, at.feature_dim)
        if spec.activations is not None:
            assert spec.absmax is not None
            codes, scale = absmax_codes(normed, spec.absmax, at.scale_dims, overwrite=normed is not x)
        else:  # cloned, since an output of a Function may not be its input
            codes, scale = normed.clone() if normed is x else normed, None
        y = scaled_product(codes, scale, weights, b, spec, call.backend)
        return y.to(call.dtype), codes, scale, mean, rstd, link

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        x, weight, bias, w_codes, w_scale, w_shift, x_codes, x_scale, call = inputs
        _, codes, scale, mean, rstd, link = output
        ctx.mark_non_differentiable(*(t for t in output[1:5] if t is not None))
        ctx.set_materialize_grads(False)
        if x_codes is not None:
            codes, scale = x_codes, x_scale
        kept_x = x if link is None else link
        # of the weights only the graph is needed, so that they may change before the backward: torch would
        # refuse that of a saved tensor; functorch, on the other hand, knows saved tensors only
        followers = not call.fused and followed()
        saved_weight, ctx.weight = (weight, None) if followers else (None, weight)
        ctx.save_for_backward(kept_x, codes, scale, w_codes, w_scale, w_shift, mean, rstd, saved_weight)
        ctx.call = call
        ctx.dtypes = (x.dtype, weight.dtype, None if bias is None else bias.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
        grads = cast_gradients(ctx, grad)
        of_link, needed = others[-1], ctx.needs_input_grad
        if of_link is not None and needed[0]:
            of_link = of_link.to(ctx.dtypes[0])
            grads = (of_link if grads[0] is None else grads[0] + of_link, *grads[1:])
        return (*grads, None, None, None, None, None, None)


class NormedProduct(torch.autograd.Function):
    """`QuantizedProduct` of a layer with a norm, computed by its backend, where nothing follows torch.

    It has a single output, since every further one takes as long as a small layer's codes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        w_codes: Tensor,
        w_scale: Tensor,
        call: Call,
    ) -> Tensor:
        b = None if bias is None else bias.float()
        y, codes, scale, mean, rstd = call.backend.forward(x, b, w_codes, w_scale, call)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, codes, scale, w_codes, w_scale, None, mean, rstd, None)
        ctx.weight, ctx.call = weight, call
        ctx.dtypes = (x.dtype, weight.dtype, None if bias is None else bias.dtype)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        return (*cast_gradients(ctx, grad), None, None, None)


def cast_gradients(ctx: Any, grad: Tensor | None) -> Grads:
    """What `gradients` gives, in the dtypes of x, the latent weights and the bias."""
    if grad is None:
        return None, None, None
    if autocasts(grad):
        with no_autocast(grad):
            x, weight, bias = gradients(ctx, grad)
    else:  # no context at all: one that does nothing takes as long as a norm
        x, weight, bias = gradients(ctx, grad)
    of_x, of_weight, of_bias = ctx.dtypes
    if x is not None and x.dtype is not of_x:
        x = x.to(of_x)
    if weight is not None and weight.dtype is not of_weight:
        weight = weight.to(of_weight)
    if bias is not None and bias.dtype is not of_bias:
        bias = bias.to(of_bias)
    return x, weight, bias


def gradients(ctx: Any, grad: Tensor) -> Grads:
    """The gradients of the output of `QuantizedProduct`, by whoever can make them here."""
    x, codes, scale, w_codes, w_scale, w_shift, mean, rstd, weight = ctx.saved_tensors
    call: Call = ctx.call
    needed = ctx.needs_input_grad[:3]
    weights = Quantized(w_codes, w_scale, w_shift)
    if torch.is_grad_enabled() and not is_dynamo_compiling():  # a graph of the backward itself
        latent = ctx.weight if weight is None else weight
        return differentiable(grad, x, latent, codes, scale, weights, call, needed)
    normed_x, saved = (None if call.spec.norm == "none" else x), (codes, scale, mean, rstd)
    if call.fused and not followed() and in_memory(grad):
        return call.backend.backward(grad, normed_x, saved, w_codes, w_scale, call, needed)
    return straight_through(grad, normed_x, saved, weights, call, needed)


_direct = apply_without_binding(QuantizedProduct)
_normed = apply_without_binding(NormedProduct)


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
    if followed():
        call = call._replace(fused=False)
        return QuantizedProduct.apply(x, weight, bias, codes, scale, shift, x_codes, x_scale, call)[0]
    if call.fused and not (
        x_codes is None
        and shift is None
        and call.spec.levels.planes == 1
        and in_memory(x)
        and call.backend.takes(x, weight, scale, call.spec)
    ):
        call = call._replace(fused=False)
    if call.fused and call.spec.norm != "none":
        y: Tensor = _normed(x, weight, bias, codes, scale, call)
        return y
    return _direct(x, weight, bias, codes, scale, shift, x_codes, x_scale, call)[0]
