"""Quantized layers of every kind, and what they should compute: in float64, by torch's own operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from bitexp.kernels.int8 import Int8Backend
from bitexp.quant import Quantizer
from bitexp.quant.backend import TORCH
from bitexp.quant.layers import BitConv2d, BitLinear, QuantizedLayer
from tests.support.quantizers import make_quantizer

NORMS = ["none", "rms", "layer"]
BACKENDS = [TORCH, Int8Backend()]

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "128 levels": {"activations": {"qmax": 128}},
    "scaled bias": {"bias": "scaled"},
    "float activations": {"activations": "none"},
    "scale per channel": {"weights": {"granularity": "channel"}},
    "binary": {"weights": "binary"},
    "median": {"weights": "ternary_median"},
    "8 bits": {"weights": {"name": "int", "bits": 8}},
    "int4 activations": {"activations": "int4"},
}
"""Changes of conf/quantizer/ternary_mean.yaml that every kind of layer takes."""

LINEAR = {**VARIANTS, "scale per group": {"weights": {"granularity": "group", "group_size": 6}}}

CONVS: dict[str, dict[str, Any]] = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilated": {"kernel_size": 3, "dilation": 2},
    "1x1": {"kernel_size": 1},
    "uneven": {"kernel_size": (3, 1), "stride": (1, 2), "padding": (2, 0)},
    "grouped": {"kernel_size": 3, "groups": 2},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 4},
}


def straight_through(value: Tensor, quantized: Tensor) -> Tensor:
    """The textbook: the quantized value forwards, the identity backwards."""
    return value + (quantized.to(value.dtype) - value).detach()


def textbook(layer: QuantizedLayer, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The layer in float64 by torch's own operators and autograd, around codes found in fp32."""
    spec = layer.spec
    dim, dims = (-1, (-1,)) if spec.conv is None else (1, (1, 2, 3))
    normed32, normed = (norm_of_torch(v, spec.norm, dim) for v in (x.detach().float(), x.double()))
    x_scale = torch.ones(())
    if spec.activations is not None:
        if qmax := spec.activations.absmax:
            absmax = normed32.abs().amax(dims, keepdim=True).clamp(min=1e-5)
            codes = (normed32 * (absmax.reciprocal() * qmax)).round().clamp(-128, 127)
            x_scale = absmax / qmax
        else:
            assert layer.parts.activations is not None
            codes, x_scale = layer.parts.activations.codes(normed32, dims)
        normed = straight_through(normed, codes.double() * x_scale.double())
    integers = layer.parts.weights.quantize(weight.detach())
    quantized = straight_through(weight.double(), integers.dequantized())
    b = None if bias is None else bias.double()
    if b is not None and spec.conv is not None:
        b = b[:, None, None]
    if b is not None and spec.bias == "scaled":
        b = b * (x_scale * integers.scale).double()
    if spec.conv is None:
        y = F.linear(normed, quantized)
    else:
        stride, padding, dilation, groups = spec.conv
        y = F.conv2d(normed, quantized, None, stride, padding, dilation, groups)
    return y if b is None else y + b


def norm_of_torch(x: Tensor, norm: str, dim: int) -> Tensor:
    """The parameter-free norms, in the formulation whose bits in fp32 are those of the layer."""
    if norm == "none":
        return x
    if norm == "rms":
        return x * torch.rsqrt(x.square().mean(dim, keepdim=True) + 1e-5)
    last = x.movedim(dim, -1)
    return F.layer_norm(last, last.shape[-1:]).movedim(-1, dim)


def assert_equals_textbook(layer: QuantizedLayer, x: Tensor) -> None:
    """Output and all gradients, to the precision of fp32."""
    ours = [x.requires_grad_(), *layer.parameters()]
    theirs = [leaf.detach().clone().requires_grad_() for leaf in ours]
    y, expected = layer(x), textbook(layer, *theirs)
    assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    out_grad = torch.randn_like(y)
    grads = torch.autograd.grad(y, ours, out_grad)
    for a, e in zip(grads, torch.autograd.grad(expected, theirs, out_grad.double()), strict=True):
        largest = float(e.abs().max())
        assert largest > 1e-4
        assert_close(a, e, rtol=1e-5, atol=1e-6 * largest)


def small(quantizer: Quantizer, conv: bool) -> tuple[QuantizedLayer, Tensor]:
    """A small layer and an input that wants its gradient."""
    if conv:
        return BitConv2d(nn.Conv2d(4, 6, 3), quantizer), torch.randn(2, 4, 7, 7, requires_grad=True)
    return BitLinear(nn.Linear(40, 24), quantizer), torch.randn(3, 5, 40, requires_grad=True)


def small_of(variant: str, conv: bool) -> tuple[QuantizedLayer, Tensor]:
    """A small layer of a variant."""
    changes = {**LINEAR[variant]}
    if variant == "scale per group":
        changes["weights"] = {"granularity": "group", "group_size": 8}
    return small(make_quantizer("ternary_mean", **changes), conv)


def ordinary(layer: QuantizedLayer) -> Callable[[Tensor], Tensor]:
    """The product of a layer with its latent weights, by torch."""
    conv = layer.spec.conv
    if conv is None:
        return lambda x: F.linear(x, layer.weight, layer.bias)
    return lambda x: F.conv2d(x, layer.weight, layer.bias, *conv)


def values(kind: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Inputs of a kind; `saturating` rows have the codes +-127 throughout."""
    draw = torch.Generator().manual_seed(seed)
    normal = torch.randn(shape, generator=draw)
    if kind == "saturating":
        return normal.sign() * 3.7
    if kind == "zero":
        return torch.zeros(shape)
    if kind == "one large":
        return normal * (torch.rand(shape, generator=draw) < 0.01) * 1e4
    if kind == "mixed" and shape[0] > 2:
        normal[0], normal[1], normal[2] = 0, 5, normal[2].sign()
    return normal
