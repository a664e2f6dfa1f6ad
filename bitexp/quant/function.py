"""The autograd function of a quantized layer: norm, codes, integer product and scales in one node.

The backward is that of `y = (x_q s_x) @ (w_q s_w)^T + bias` with rounding and clamping taken as the
identity and the steps as constants (straight-through estimator, arXiv 2310.11453 section 2.2).
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitexp.quant.activations import absmax_codes, normalize, normalize_backward
from bitexp.quant.product import (
    ConvArgs,
    Geometry,
    Product,
    dequantize,
    product_grads,
    scaled_product,
)
from bitexp.quant.registry import Arithmetic, Norm


class Spec(NamedTuple):
    """What of a layer is no tensor; `qmax` 0 leaves the activations floats.

    `dtype` is that of the output; `grad_dtype`, fp32 or bf16, that of the factors in the backward's
    two products. `fused` computes a whole linear layer where it is given, else torch does.
    """

    conv: ConvArgs | None
    norm: Norm
    qmax: int
    scaled_bias: bool
    product: Product
    dtype: torch.dtype
    grad_dtype: torch.dtype
    fused: FusedLinear | None


Saved = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
"""activation codes, their step, and the mean and 1/std of the norm"""

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]
"""with respect to the input, the latent weights and the bias"""


class FusedLinear(Arithmetic, ABC):
    """A linear layer's training step by other means than torch's operators, on plain tensors.

    It computes what `QuantizedProduct` computes, with the same codes for the same normed input; its norm
    may round otherwise. Evaluation goes by `Product`, with torch's own norm.
    """

    @abstractmethod
    def takes(self, x: Tensor, weight: Tensor, w_scale: Tensor, spec: Spec) -> bool:
        """Whether it can compute this layer on this input."""

    @abstractmethod
    def forward(
        self, x: Tensor, bias: Tensor | None, w_codes: Tensor, w_scale: Tensor, spec: Spec
    ) -> tuple[Tensor, *Saved]:
        """The output in `spec.dtype`, no view of anything, and what the backward needs."""

    @abstractmethod
    def backward(
        self,
        grad: Tensor,
        x: Tensor | None,
        saved: Saved,
        w_codes: Tensor,
        w_scale: Tensor,
        spec: Spec,
        needed: tuple[bool, bool, bool],
    ) -> Grads:
        """The gradients that are needed: x's in its own dtype or fp32, the others in fp32."""


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


def transformed() -> bool:
    """Whether this is traced or transformed: what is seen here may be no numbers."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def plain(x: Tensor) -> bool:
    """Whether a tensor is one of numbers in memory, which code outside of torch can read."""
    return type(x) in (Tensor, torch.nn.Parameter) and torch._C._has_storage(x) and not transformed()


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Switches autocast off where it is on; the context costs as much as a small layer's norm."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()


def result_dtype(x: Tensor) -> torch.dtype:
    """The dtype an ordinary linear layer would answer with: autocast's where it is on, else x's."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
