"""The backward of a quantized layer as something that is itself differentiated (`create_graph`).

Codes and scales are constants, and so a gradient of a gradient would miss all that goes through them. Here
the values of the straight-through estimator are rebuilt, `v + (Q(v) - v)` with a constant in the brackets, so
that the second order is that of the textbook's form, whose operators torch differentiates.
"""

from __future__ import annotations

from torch import Tensor

from bitexp.quant.backend import Call, Grads
from bitexp.quant.norms import DifferentiableNorm
from bitexp.quant.product import Quantized, product_grads
from bitexp.quant.spec import Geometry


def with_gradient_of(quantized: Tensor, value: Tensor) -> Tensor:
    """`quantized` with the gradient of `value`."""
    return quantized + (value - value.detach())


def differentiable(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    codes: Tensor,
    scale: Tensor | None,
    weights: Quantized,
    call: Call,
    needed: tuple[bool, bool, bool],
) -> Grads:
    """The gradients as `backward.straight_through` has them, with a graph of their own.

    Args:
        x: the input; without a norm only its graph counts, and its values may be zeros.
        weight: the latent weights, of which only the graph counts.
    """
    spec, dtype, at = call.spec, call.grad_dtype, Geometry(call.spec.conv)
    grad, normed = grad.float(), None
    grad_b = None
    if needed[2]:
        per_output = grad
        if spec.bias == "scaled":
            assert scale is not None
            per_output = grad * (scale * at.spread(weights.scale))
        grad_b = at.sum_outputs(per_output)
    value = x.float()
    if spec.norm != "none":
        normed = DifferentiableNorm(value, spec.norm, at.feature_dim)
        value = normed.value
    inputs = with_gradient_of(codes if scale is None else codes * scale, value)
    latent = with_gradient_of(weights.dequantized(), weight.float())
    grad_x, grad_w = product_grads(
        grad.to(dtype), inputs.to(dtype), latent.to(dtype), spec, needed[0], needed[1]
    )
    if grad_x is not None and normed is not None:
        grad_x = normed.backward(grad_x.float())
    return grad_x, grad_w, grad_b
