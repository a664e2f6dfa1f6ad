"""Codes of other quantizers, and weights of any levels: the bits of `reference`, and of int64 sums."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bitexp.kernels import KERNELS
from bitexp.quant.levels import TERNARY, Levels
from bitexp.quant.product import Quantized
from bitexp.quant.spec import Geometry
from tests.support.layer_cases import (
    CONVS,
    LEVELS,
    LINEAR,
    codes_and_scale,
    codes_of,
    scales_of,
    sums_of,
)
from tests.support.specs import spec_for

TRITON, REFERENCE = KERNELS.get("triton"), KERNELS.get("reference")

KINDS = [("linear", g) for g in ("tensor", "channel", "group")]
KINDS += [(layer, g) for layer in CONVS for g in ("tensor", "channel")]


@pytest.mark.parametrize("kind", ["int4", "random"])
@pytest.mark.parametrize(("layer", "granularity"), KINDS)
@pytest.mark.parametrize("levels", [TERNARY, Levels(-8, 7)], ids=str)
def test_codes_of_other_quantizers(
    device: str, kind: str, layer: str, granularity: str, levels: Levels
) -> None:
    torch.manual_seed(0)
    shape, conv = CONVS.get(layer, (LINEAR, None))
    codes, scale, spec = codes_and_scale(kind, spec_for(conv=conv, shape=shape, levels=levels))
    bias, shift = torch.randn(shape[0]), torch.randn(shape[0])
    weights = Quantized(codes_of(levels, *shape), scales_of(granularity, shape[0]))
    cases = [(weights, None, spec), (weights, bias, spec)]
    cases += [(weights._replace(shift=shift), bias, replace(spec, shift=True))]
    if granularity == "tensor":
        cases += [(weights, bias, replace(spec, bias="scaled"))]
    for given, added, one in cases:
        prepared = TRITON.prepare(*(None if t is None else t.to(device) for t in given))
        on_device = None if added is None else added.to(device)
        y = TRITON.forward_codes(codes.to(device), scale.to(device), prepared, on_device, one)
        assert torch.equal(y.cpu(), REFERENCE.forward_codes(codes, scale, given, added, one))


@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("layer", ["linear", "conv"])
def test_wide_sums_are_rounded_once(device: str, levels: Levels, layer: str) -> None:
    torch.manual_seed(0)
    shape, conv = (9, 2079), None
    if layer == "conv":
        shape, conv = (9, 231, 3, 3), ((1, 1), (1, 1), (1, 1), 1)
    spec = spec_for(128, conv=conv, shape=shape, levels=levels)
    weights = codes_of(levels, *shape)
    codes = torch.randint(-128, 128, (5, 2079) if conv is None else (2, 231, 5, 5), dtype=torch.int8)
    codes[0], weights[1], weights[2] = 127, levels.high, levels.low
    scale = torch.rand(9) + 0.1
    x_scale = torch.rand_like(codes.float().amax(Geometry(conv).scale_dims, keepdim=True)) + 0.1
    prepared = TRITON.prepare(weights.to(device), scale.to(device))
    y = TRITON.forward_codes(codes.to(device), x_scale.to(device), prepared, None, spec)
    assert torch.equal(y.cpu(), sums_of(codes, weights, scale, spec, x_scale))
