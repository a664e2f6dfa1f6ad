"""The arithmetic of a quantized layer: the sum over integer codes, then the scales, then the bias.

The sum is defined as an int32 sum, rounded once to fp32. Up to 2^24 fp32 adds integers exactly in any
order, so the packed kernels that add in int32 give the same bits as the training forward. Each step is
rounded by itself: sum, times (activation scale times weight scale), plus (activation scale times sum of
activation codes) times shift, plus bias; sums of groups, and of planes, are scaled and added in ascending
order.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from bitexp.quant.backend import TORCH, Backend
from bitexp.quant.per_row import spread
from bitexp.quant.spec import ConvArgs, Geometry, LayerSpec, rows


class Quantized(NamedTuple):
    """Weights as integers: `codes * scale + shift` are the dequantized ones.

    `codes` are int8 `[out, ...]`; `scale` is fp32 `[]`, `[out]` or `[out, groups]`; `shift` is `[]`,
    `[out]` or None. Weights of several planes are the sum of their planes, which both have as their first
    dimension: `codes [planes, out, ...]`, `scale [planes]` or `[planes, out]`.
    """

    codes: Tensor
    scale: Tensor
    shift: Tensor | None = None

    @property
    def planes(self) -> list[Quantized]:
        """The planes of weights that have some, without the shift."""
        if self.codes.dim() % 2 == 0:  # a matrix, or the weights of a 2-d convolution
            return []
        return [Quantized(codes, scale) for codes, scale in zip(self.codes, self.scale, strict=True)]

    def code_of_each(self) -> Tensor:
        """One integer for each weight, 0 where the weight is; of planes the codes as digits."""
        if not self.planes:
            return self.codes
        return sum(plane.codes.int() << 8 * place for place, plane in enumerate(self.planes))  # type: ignore[return-value]

    def dequantized(self) -> Tensor:
        """In fp32."""
        if planes := self.planes:
            return self._shifted(functools.reduce(torch.add, [plane.dequantized() for plane in planes]))
        codes = self.codes.to(torch.float32, copy=True)
        if self.scale.dim() == 0:
            weights = codes.mul_(self.scale)
        else:
            grouped = codes.reshape(*self.scale.shape, -1)
            weights = grouped.mul_(self.scale[..., None]).reshape(codes.shape)
        return self._shifted(weights)

    def _shifted(self, weights: Tensor) -> Tensor:
        if self.shift is None:
            return weights
        return weights.add_(self.shift.reshape(-1, *[1] * (weights.dim() - 1)))

    def spread_scale(self) -> Tensor:
        """The scale in a shape that multiplies the weights."""
        if self.scale.dim() < 2:
            return spread(self.scale, self.codes)
        return self.scale.repeat_interleave(self.codes.shape[1] // self.scale.shape[1], 1)


def grouped_product(
    x: Tensor, x_scale: Tensor | None, weights: Quantized, spec: LayerSpec, backend: Backend
) -> Tensor:
    """Scaled linear product with a scale per group of inputs, groups added in ascending order."""
    codes, scales, _ = weights
    groups = scales.shape[1]
    parts = []
    for g, (xg, wg) in enumerate(zip(x.chunk(groups, -1), codes.chunk(groups, -1), strict=True)):
        scale = scales[:, g] if x_scale is None else x_scale * scales[:, g]
        parts.append(backend.product(xg, wg, spec) * scale)
    return functools.reduce(torch.add, parts)


def scaled_product(
    x: Tensor,
    x_scale: Tensor | None,
    weights: Quantized,
    bias: Tensor | None,
    spec: LayerSpec,
    backend: Backend = TORCH,
) -> Tensor:
    """The output of a layer from codes and scales.

    Args:
        x: int8 codes of the input `[..., K]` or `[B, C, H, W]`; floats where there is no `x_scale`.
        x_scale: of size 1 along what shares a scale.
    """
    codes, w_scale, shift = weights
    planes = weights.planes
    if shift is None and not planes:
        whole = backend.scaled_product(x, x_scale, codes, w_scale, bias, spec)
        if whole is not None:
            return whole
    at = Geometry(spec.conv)
    if planes:
        parts = [scaled_product(x, x_scale, plane, None, spec, backend) for plane in planes]
        y = functools.reduce(torch.add, parts)
        codes = planes[0].codes
    elif w_scale.dim() == 2:
        y = grouped_product(x, x_scale, weights, spec, backend)
    else:
        y = backend.product(x, codes, spec)
        if spec.bias == "scaled" and bias is not None:
            y = y.add_(at.spread(bias))
        scale = at.spread(w_scale)
        y = y.mul_(scale if x_scale is None else x_scale * scale)
    if shift is not None:
        y = y.add_(shifted(x, x_scale, codes, spec).mul(at.spread(shift)))
    if bias is not None and spec.bias == "plain":
        y = y.add_(at.spread(bias))
    return y


def shifted(x: Tensor, x_scale: Tensor | None, codes: Tensor, spec: LayerSpec) -> Tensor:
    """What a shift of one adds to each output: the sum of the inputs that it sees, in fp32."""
    if spec.conv is None:
        sums = x.sum(-1, keepdim=True, dtype=torch.int32 if x_scale is not None else None).float()
    else:
        groups = spec.conv[3]
        ones = torch.ones_like(codes[:groups])
        sums = TORCH.product(x, ones, spec).repeat_interleave(len(codes) // groups, -3)
    return sums if x_scale is None else sums * x_scale


def product_grads(
    grad: Tensor, x: Tensor, weight: Tensor, spec: LayerSpec, need_x: bool, need_w: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the product of x and weight with respect to both, for the output gradient `grad`."""
    if spec.conv is not None:
        return conv_grads(grad, x, weight, spec.conv, need_x, need_w)
    grad_x = grad @ weight if need_x else None
    grad_w = rows(grad).t() @ rows(x) if need_w else None
    return grad_x, grad_w


def conv_grads(
    grad: Tensor, x: Tensor, weight: Tensor, conv: ConvArgs, need_x: bool, need_w: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The same of a convolution."""
    stride, padding, dilation, groups = conv
    if weight.shape[2:].numel() == 1 and max(stride) > 1:
        # with features last, as the norm leaves x, oneDNN's gradient of these weights writes past its memory
        # when it has several threads (torch 2.13, three channels into 48, stride 2)
        grad, x = grad.contiguous(), x.contiguous()
    grad_x, grad_w, _ = torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        None,
        stride,
        padding,
        dilation,
        False,
        [0, 0],
        groups,
        [need_x, need_w, False],
    )
    return grad_x, grad_w
