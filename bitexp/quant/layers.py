"""BitLinear and BitConv2d: norm, quantize, multiply integers, scale; gradients go straight through.

x_n = norm(x);  x_q, s_x = int8 codes of x_n, one step per token
w_q, s_w = the quantizer's codes of the latent weights, once per optimizer step
y = (x_q @ w_q^T) * (s_x * s_w) + bias
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitexp.quant.activations.absmax import absmax_codes
from bitexp.quant.autograd import quantized_product
from bitexp.quant.backend import Arithmetic, FusedLinear, Product, Spec
from bitexp.quant.cache import CodesCache
from bitexp.quant.modes import no_autocast, result_dtype
from bitexp.quant.norms import normalize
from bitexp.quant.product import dequantize, float_product
from bitexp.quant.quantizer import Quantizer
from bitexp.quant.spec import EXACT, ConvArgs, Geometry, Norm


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
        self.fused: FusedLinear | None = None
        self.cache = CodesCache()
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
        dtype = result_dtype(x)
        with no_autocast(x):
            if self.phasing:
                return self._mixed_forward(x).to(dtype)
            return self._exact_forward(x, dtype)

    def _exact_forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        quantizer, weight = self.quantizer, self.weight
        codes, scale = self.cache.weights(quantizer, weight) if self.training else quantizer.weights(weight)
        spec = Spec(
            conv=self.conv,
            norm=self.norm,
            qmax=quantizer.act_qmax,
            scaled_bias=quantizer.bias == "scaled",
            product=self.product,
            dtype=dtype,
            grad_dtype=torch.bfloat16 if dtype == torch.bfloat16 else torch.float32,
            fused=self.fused if self.training else None,
        )
        return quantized_product(x, weight, self.bias, codes, scale, spec)

    def train(self, mode: bool = True) -> Self:
        self.cache.clear()  # between training and evaluation weights are swapped behind torch's back
        return super().train(mode)

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


def set_product(model: nn.Module, product: Product, fused: FusedLinear | None = None) -> None:
    """Sets how every quantized layer of the model sums over codes, and what else does its training step."""
    for layer in quantized_layers(model).values():
        layer.product, layer.fused = product, fused
        layer.quantizer.arithmetic = fused or Arithmetic()


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """The quantized layers of a model by dotted name, those without a weight quantizer left out."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLayer) and module.quantizer.quantizes_weights
    }


__all__ = ["BitConv2d", "BitLinear", "QuantizedLayer", "quantized_layers", "set_lambda", "set_product"]
