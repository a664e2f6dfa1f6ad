"""BitLinear and BitConv2d: norm, quantize, multiply integers, scale; gradients go straight through.

    x_n = norm(x);  x_q, s_x = int8 codes of x_n, one step per token
    w_q, s_w = the quantizer's codes of the latent weights, every forward
    y = (x_q @ w_q^T) * (s_x * s_w) + bias

The backward is that of `y = (x_q s_x) @ (w_q s_w)^T + bias` with rounding and clamping taken as the
identity and the steps as constants (straight-through estimator, arXiv 2310.11453 section 2.2).
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitexp.quant.activations import absmax_codes, normalize, normalize_backward
from bitexp.quant.product import (
    EXACT,
    ConvArgs,
    Geometry,
    Product,
    float_product,
    product_grads,
    scaled_product,
)
from bitexp.quant.registry import Norm, Quantizer


class Spec(NamedTuple):
    """What of a layer is no tensor; `qmax` 0 leaves the activations floats."""

    conv: ConvArgs | None
    norm: Norm
    qmax: int
    scaled_bias: bool
    product: Product


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
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        at = Geometry(spec.conv)
        normed, mean, rstd = normalize(x.float(), spec.norm, at.feature_dim)
        if spec.qmax:
            codes, scale = absmax_codes(normed, spec.qmax, at.scale_dims, overwrite=normed is not x)
        else:  # cloned, since an output of a Function may not be its input
            codes, scale = normed.clone() if normed is x else normed, None
        b = None if bias is None else bias.float()
        y = scaled_product(codes, scale, w_codes, w_scale, b, spec.conv, spec.scaled_bias, spec.product)
        return y, codes, scale, mean, rstd

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
        x_dtype, w_dtype, b_dtype = ctx.dtypes
        need_x, need_w, need_b = ctx.needs_input_grad[:3]
        spec: Spec = ctx.spec
        at = Geometry(spec.conv)
        with no_autocast(grad):
            grad = grad.float()
            grad_b = None
            if need_b:
                per_output = grad * (scale * at.spread(w_scale)) if spec.scaled_bias else grad
                grad_b = at.sum_outputs(per_output).to(b_dtype)
            inputs = codes if scale is None else codes * scale
            weights = dequantize(w_codes, w_scale)
            grad_x, grad_w = product_grads(grad, inputs, weights, spec.conv, need_x, need_w)
            if grad_x is not None:
                if x is not None:
                    grad_x = normalize_backward(grad_x, x.float(), mean, rstd, at.feature_dim)
                grad_x = grad_x.to(x_dtype)
            if grad_w is not None:
                grad_w = grad_w.to(w_dtype)
        return grad_x, grad_w, grad_b, None, None, None


_direct = super(torch.autograd.Function, QuantizedProduct).apply


def quantized_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, w_codes: Tensor, w_scale: Tensor, spec: Spec
) -> Tensor:
    """The output of `QuantizedProduct`.

    Outside of transforms and compilation it goes past `Function.apply`, which binds the arguments
    against the signature at every call: as costly as the norm of a small layer.
    """
    args = (x, weight, bias, w_codes, w_scale, spec)
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return QuantizedProduct.apply(*args)[0]
    return _direct(*args)[0]


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Switches autocast off where it is on; the context costs as much as a small layer's norm."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """`codes * scale` in fp32, for steps `[]`, per output `[out]` or per group `[out, groups]`."""
    if scale.dim() == 0:
        return codes.float().mul_(scale)
    rows = codes.float().reshape(*scale.shape, -1)
    return rows.mul_(scale[..., None]).reshape(codes.shape)


class QuantizedLayer(nn.Module):
    """What BitLinear and BitConv2d share: latent weights, a quantizer, and lambda.

    lambda in [0, 1] phases quantization in: activations and weights are `v + lambda * (Q(v) - v)`
    with a straight-through gradient. At 1 the product is over integers; below, over floats.
    """

    conv: ConvArgs | None = None
    mix: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, quantizer: Quantizer) -> None:
        super().__init__()
        self.weight: Tensor = weight  # parameters, both
        self.bias: Tensor | None = bias
        self.quantizer = quantizer
        self.norm: Norm = quantizer.norm
        self.product: Product = float_product
        self.phasing = False
        self.register_buffer("mix", torch.ones((), device=weight.device), persistent=False)
        if quantizer.quantizes_weights:
            check_exact(weight[0].numel(), quantizer)

    def set_lambda(self, value: float) -> None:
        """Sets lambda: 1 is fully quantized, 0 leaves the norm alone."""
        self.phasing = value != 1.0
        self.mix.fill_(value)

    def forward(self, x: Tensor) -> Tensor:
        if not self.quantizer.quantizes_weights:
            return self._plain_forward(x)
        if not torch.is_autocast_enabled(x.device.type):
            y = self._forward(x)
            return y if y.dtype == x.dtype else y.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return self._forward(x).to(torch.get_autocast_dtype(x.device.type))

    def _forward(self, x: Tensor) -> Tensor:
        if self.phasing:
            return self._mixed_forward(x)
        quantizer, weight = self.quantizer, self.weight
        codes, scale = quantizer.weights(weight)
        spec = Spec(self.conv, self.norm, quantizer.act_qmax, quantizer.bias == "scaled", self.product)
        return quantized_product(x, weight, self.bias, codes, scale, spec)

    def _mixed_forward(self, x: Tensor) -> Tensor:
        at, quantizer = Geometry(self.conv), self.quantizer
        normed, _, _ = normalize(x.float(), self.norm, at.feature_dim)
        weight, bias = self.weight.float(), self.bias
        codes, w_scale = quantizer.weights(self.weight)
        weight = weight + self.mix * (dequantize(codes, w_scale) - weight).detach()
        if bias is not None:
            bias = at.spread(bias.float())
        if quantizer.act_qmax:
            x_codes, x_scale = absmax_codes(normed.detach(), quantizer.act_qmax, at.scale_dims)
            normed = normed + self.mix * (x_codes * x_scale - normed).detach()
            if bias is not None and quantizer.bias == "scaled":
                bias = bias * (x_scale * w_scale)
        y = float_product(normed, weight, self.conv)
        return y if bias is None else y + bias

    def _plain_forward(self, x: Tensor) -> Tensor:
        """The ordinary layer after the norm, in the precision that the ordinary layer would have."""
        dim = Geometry(self.conv).feature_dim
        normed = normalize(x.float(), self.norm, dim)[0].to(x.dtype)
        if self.conv is None:
            return F.linear(normed, self.weight, self.bias)
        stride, padding, dilation, groups = self.conv
        return F.conv2d(normed, self.weight, self.bias, stride, padding, dilation, groups)

    def extra_repr(self) -> str:
        return f"{list(self.weight.shape)}, bias={self.bias is not None}, norm={self.norm}"


class BitLinear(QuantizedLayer):
    """A quantized `nn.Linear`: `[..., in] -> [..., out]`, one activation step per token.

    Takes over the parameters of `linear` (the same objects, so ties and optimizer state survive).
    """

    def __init__(self, linear: nn.Linear, quantizer: Quantizer) -> None:
        super().__init__(linear.weight, linear.bias, quantizer)
        self.in_features, self.out_features = linear.in_features, linear.out_features


class BitConv2d(QuantizedLayer):
    """A quantized `nn.Conv2d`: the same on unfolded patches.

    The norm runs over the channels at each pixel and one activation step covers a whole sample, so
    that an image is quantized once and not once per patch.
    """

    def __init__(self, conv: nn.Conv2d, quantizer: Quantizer) -> None:
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(
                f"BitConv2d pads with zeros by a number of pixels; padding={conv.padding!r} with "
                f"padding_mode={conv.padding_mode!r} is not supported"
            )
        if getattr(quantizer, "granularity", "tensor") == "group":
            raise ValueError("granularity=group is for linear layers; use channel for convolutions")
        super().__init__(conv.weight, conv.bias, quantizer)
        self.conv = (pair(conv.stride), pair(conv.padding), pair(conv.dilation), conv.groups)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            return super().forward(x[None])[0]
        return super().forward(x)


def pair(value: tuple[int, ...]) -> tuple[int, int]:
    """A convolution argument as (height, width)."""
    return value[0], value[-1]


def result_dtype(x: Tensor) -> torch.dtype:
    """The dtype an ordinary linear layer would answer with: autocast's where it is on, else x's."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def check_exact(inputs: int, quantizer: Quantizer) -> None:
    """Raises `ValueError` where a sum over that many codes could leave the integers exact in fp32."""
    largest = inputs * quantizer.act_qmax * max(abs(quantizer.low), abs(quantizer.high))
    if largest > EXACT:
        raise ValueError(
            f"a layer with {inputs:,} inputs can sum to {largest:,}, and fp32 holds integers exactly "
            f"up to {EXACT:,}; keep this layer in full precision (quantizer.exclude)"
        )


def set_lambda(model: nn.Module, value: float) -> None:
    """Sets lambda in every quantized layer of the model."""
    for module in model.modules():
        if isinstance(module, QuantizedLayer):
            module.set_lambda(value)


def set_product(model: nn.Module, product: Product) -> None:
    """Sets how every quantized layer of the model sums over codes while it trains."""
    for layer in quantized_layers(model).values():
        layer.product = product


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """The quantized layers of a model by dotted name, those without a weight quantizer left out."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLayer) and module.quantizer.quantizes_weights
    }


__all__ = ["BitConv2d", "BitLinear", "QuantizedLayer", "quantized_layers", "set_lambda", "set_product"]
