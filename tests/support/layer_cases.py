"""Codes, scales and inputs for layers of any kind, and their output by int64."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bitexp.quant.activations.int4 import Int4
from bitexp.quant.levels import BINARY, TERNARY, Levels
from bitexp.quant.spec import ConvArgs, Geometry, LayerSpec
from tests.support.specs import INT4, int8

LINEAR = (9, 70)
CONVS: dict[str, tuple[tuple[int, ...], ConvArgs]] = {
    "conv": ((8, 6, 3, 2), ((2, 1), (1, 2), (1, 2), 1)),
    "grouped conv": ((8, 3, 3, 3), ((1, 1), (1, 1), (1, 1), 2)),
}
LEVELS = [BINARY, TERNARY, Levels(-2, 1), Levels(-1, 2), Levels(-3, 3, 2), Levels(-8, 7), Levels(-127, 127)]


def codes_of(levels: Levels, *shape: int) -> Tensor:
    """Random codes, the lowest and the highest among them."""
    digits = torch.randint(levels.count, shape)
    digits.view(-1)[0], digits.view(-1)[-1] = 0, levels.count - 1
    return (digits * levels.stride + levels.low).to(torch.int8)


def inputs_of(spec: LayerSpec) -> Tensor:
    """Floats for a layer: tokens, or samples of 7 x 8 pixels."""
    if spec.conv is None:
        return torch.randn(5, 3, spec.shape[1])
    return torch.randn(3, spec.shape[1] * spec.conv[3], 7, 8)


def codes_and_scale(kind: str, spec: LayerSpec) -> tuple[Tensor, Tensor, LayerSpec]:
    """Activation codes, their scale, and the spec that says so."""
    x, dims = inputs_of(spec), Geometry(spec.conv).scale_dims
    if kind == "int4":
        return *Int4().codes(x, dims), replace(spec, activations=INT4)
    scale = torch.rand_like(x.amax(dims, keepdim=True)) + 0.1
    return torch.randint(-128, 128, x.shape, dtype=torch.int8), scale, replace(spec, activations=int8(128))


def scales_of(granularity: str, outputs: int) -> Tensor:
    """Of the weights."""
    shapes: dict[str, tuple[int, ...]] = {"tensor": (), "channel": (outputs,), "group": (outputs, 7)}
    return torch.rand(shapes[granularity]) + 0.01


def sums_of(codes: Tensor, weights: Tensor, scale: Tensor, spec: LayerSpec, x_scale: Tensor) -> Tensor:
    """The sum in int64, rounded to fp32 once, times the product of the scales."""
    if spec.conv is None:
        sums = codes.long() @ weights.long().t()
    else:
        sums = F.conv2d(codes.double(), weights.double(), None, *spec.conv).long()
    return sums.float() * (x_scale * Geometry(spec.conv).spread(scale))
