"""The arithmetic of a quantized layer: the sum over integer codes, then the scales, then the bias.

Sums of integers up to 2^24 are exact in fp32 in any order, so the packed kernels that add in int32
give the same bits as the training forward. Each step is rounded by itself: sum, times (x step times
weight step), plus bias; per-group sums are scaled and added in ascending order of the groups.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from bitexp.quant.backend import Product
from bitexp.quant.spec import ConvArgs, Geometry, rows


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """`codes * scale` in fp32, for steps `[]`, per output `[out]` or per group `[out, groups]`."""
    if scale.dim() == 0:
        return codes.float().mul_(scale)
    rows = codes.float().reshape(*scale.shape, -1)
    return rows.mul_(scale[..., None]).reshape(codes.shape)


def float_product(x: Tensor, weight: Tensor, conv: ConvArgs | None) -> Tensor:
    """The sum in fp32 by torch's own linear or convolution; exact for codes within 2^24."""
    x, w = x.float(), weight.float()
    if conv is None:
        return F.linear(x, w)
    stride, padding, dilation, groups = conv
    return F.conv2d(x, w, None, stride, padding, dilation, groups)


def grouped_product(
    x: Tensor, x_scale: Tensor | None, weight: Tensor, w_scale: Tensor, product: Product
) -> Tensor:
    """Scaled linear product with a step per group of inputs, groups added in ascending order."""
    groups = w_scale.shape[1]
    parts = []
    for g, (xg, wg) in enumerate(zip(x.chunk(groups, -1), weight.chunk(groups, -1), strict=True)):
        scale = w_scale[:, g] if x_scale is None else x_scale * w_scale[:, g]
        parts.append(product(xg, wg, None) * scale)
    return functools.reduce(torch.add, parts)


def scaled_product(
    x: Tensor,
    x_scale: Tensor | None,
    weight: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    conv: ConvArgs | None,
    scaled_bias: bool,
    product: Product = float_product,
) -> Tensor:
    """The output of a layer from codes and steps.

    Args:
        x: int8 codes of the input `[..., K]` or `[B, C, H, W]`; floats where there is no `x_scale`.
        weight: int8 codes; `w_scale` their steps: `[]`, `[out]` or `[out, groups]`.
        scaled_bias: add the bias to the sum, before the scales.
        product: one with a method `scaled` may take all these steps itself, rounded alike.
    """
    fused = getattr(product, "scaled", None)
    if fused and (y := fused(x, x_scale, weight, w_scale, bias, conv, scaled_bias)) is not None:
        return y
    at = Geometry(conv)
    if w_scale.dim() == 2:
        y = grouped_product(x, x_scale, weight, w_scale, product)
    else:
        y = product(x, weight, conv)
        if scaled_bias and bias is not None:
            y = y.add_(at.spread(bias))
        scale = at.spread(w_scale)
        y = y.mul_(scale if x_scale is None else x_scale * scale)
    if bias is not None and not scaled_bias:
        y = y.add_(at.spread(bias))
    return y


def product_grads(
    grad: Tensor, x: Tensor, weight: Tensor, conv: ConvArgs | None, need_x: bool, need_w: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `product(x, weight)` with respect to both, for the output gradient `grad`."""
    if conv is None:
        grad_x = grad @ weight if need_x else None
        grad_w = rows(grad).t() @ rows(x) if need_w else None
        return grad_x, grad_w
    stride, padding, dilation, groups = conv
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
