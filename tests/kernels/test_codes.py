"""Every kernel has the bits of `reference`: codes of any quantizer, weights of any levels, any scales."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bitexp.kernels import KERNELS
from bitexp.kernels.registry import Kernel
from bitexp.quant.levels import BINARY, TERNARY, Levels
from bitexp.quant.product import Quantized
from bitexp.quant.spec import Geometry, LayerSpec
from tests.support.layer_cases import (
    CONVS,
    LEVELS,
    LINEAR,
    codes_and_scale,
    codes_of,
    inputs_of,
    scales_of,
    sums_of,
)
from tests.support.specs import INT4, spec_for

REFERENCE = KERNELS.get("reference")
USABLE = [name for name in KERNELS.names() if name == "triton" or not KERNELS.get(name).unavailable("cpu")]
"""Those that run here; `triton` goes by torch on the CPU, and by its own in `tests/kernels/gpu`."""
every_kernel = pytest.mark.parametrize("name", USABLE)

KINDS = [("linear", g) for g in ("tensor", "channel", "group")]
KINDS += [(layer, g) for layer in CONVS for g in ("tensor", "channel")]  # groups are for linear layers


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def same(kernel: Kernel, codes: Tensor, scale: Tensor, weights: Quantized, *rest: Any) -> bool:
    """Whether the kernel gives the bits of `reference`, in fp32, in memory of its own."""
    y = kernel.forward_codes(codes, scale, kernel.prepare(*weights), *rest)
    expected = REFERENCE.forward_codes(codes, scale, REFERENCE.prepare(*weights), *rest)
    assert y.dtype == torch.float32
    return torch.equal(y, expected)


@every_kernel
@pytest.mark.parametrize("kind", ["int4", "random"])
@pytest.mark.parametrize("levels", [BINARY, TERNARY, Levels(-8, 7)], ids=str)
@pytest.mark.parametrize(("layer", "granularity"), KINDS)
def test_codes_of_other_quantizers(
    name: str, kind: str, levels: Levels, layer: str, granularity: str
) -> None:
    """With and without a bias, with one before the scales, and with a shift of the weights."""
    shape, conv = CONVS.get(layer, (LINEAR, None))
    codes, scale, spec = codes_and_scale(kind, spec_for(conv=conv, shape=shape, levels=levels))
    outputs = shape[0]
    bias = torch.randn(outputs)
    kernel = KERNELS.get(name)
    weights = Quantized(codes_of(levels, *shape), scales_of(granularity, outputs))
    assert same(kernel, codes, scale, weights, None, spec)
    assert same(kernel, codes, scale, weights, bias, spec)
    if granularity == "tensor":
        assert same(kernel, codes, scale, weights, bias, replace(spec, bias="scaled"))
    for shift in (torch.tensor(0.3), torch.randn(outputs)):
        assert same(kernel, codes, scale, weights._replace(shift=shift), bias, replace(spec, shift=True))


@every_kernel
@pytest.mark.parametrize("layer", ["linear", *CONVS])
def test_codes_by_absmax_give_what_floats_give(name: str, layer: str) -> None:
    shape, conv = CONVS.get(layer, (LINEAR, None))
    spec = spec_for(conv=conv, shape=shape)
    x, kernel = inputs_of(spec), KERNELS.get(name)
    prepared, bias = kernel.prepare(codes_of(TERNARY, *shape), torch.tensor(0.3)), torch.randn(shape[0])
    amax = x.abs().amax(Geometry(conv).scale_dims, keepdim=True)
    codes = (x * (amax.reciprocal() * 127)).round().to(torch.int8)
    y = kernel.forward_codes(codes, amax / torch.full_like(amax, 127), prepared, bias, spec)
    assert torch.equal(y, kernel.forward(x, prepared, bias, spec))


@every_kernel
@pytest.mark.parametrize("layer", ["linear", *CONVS])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("qmax", [0, 127, 128])
def test_a_shift_from_floats(name: str, layer: str, granularity: str, qmax: int) -> None:
    """It adds its share of the sum of each output's inputs: the dequantized weights say how much."""
    shape, conv = CONVS.get(layer, (LINEAR, None))
    spec = replace(spec_for(qmax, conv=conv, shape=shape), shift=True)
    x, kernel = inputs_of(spec), KERNELS.get(name)
    weights = Quantized(codes_of(TERNARY, *shape), scales_of(granularity, shape[0]), torch.randn(shape[0]))
    y = kernel.forward(x, kernel.prepare(*weights), None, spec)
    expected = REFERENCE.forward(x, weights, None, spec)
    assert torch.equal(y, expected)
    floats = REFERENCE.forward(x, Quantized(weights.dequantized(), torch.ones(())), None, spec)
    torch.testing.assert_close(y, floats, rtol=1e-4, atol=1e-3)


@every_kernel
@pytest.mark.parametrize("packed", [True, False])
def test_activations_whose_codes_others_make_are_refused(name: str, packed: bool) -> None:
    kernel, spec = KERNELS.get(name), LayerSpec(activations=INT4)
    prepared = kernel.prepare(codes_of(TERNARY if packed else Levels(-100, 100), *LINEAR), torch.tensor(0.1))
    with pytest.raises(ValueError, match=r"codes of int4 activations are made by their quantizer"):
        kernel.forward(torch.randn(2, 70), prepared, None, spec)


@every_kernel
@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("layer", ["linear", "conv"])
@pytest.mark.parametrize("saturated", [True, False])
@pytest.mark.parametrize("channel", [True, False])
def test_wide_sums_are_rounded_once(
    name: str, levels: Levels, layer: str, saturated: bool, channel: bool
) -> None:
    """2,079 inputs, more than 1,040: with weights of 8 bits their sums leave the integers of fp32."""
    shape, conv = (9, 2079), None
    if layer == "conv":
        shape, conv = (9, 231, 3, 3), ((1, 1), (1, 1), (1, 1), 1)
    spec = spec_for(128, conv=conv, shape=shape, levels=levels)
    assert spec.wide == (levels.largest >= 64)
    kernel, weights = KERNELS.get(name), codes_of(levels, *shape)
    lead = (5, 2079) if conv is None else (2, 231, 5, 5)
    codes = torch.randint(-128, 128, lead, dtype=torch.int8)
    if saturated:
        codes[0], weights[1], weights[2] = 127, levels.high, levels.low
        codes[1].view(-1)[::2] = -128
        weights[2].view(-1)[::3] = levels.high
    scale = torch.rand(9) + 0.1 if channel else torch.tensor(0.37)
    x_scale = torch.rand_like(codes.float().amax(Geometry(conv).scale_dims, keepdim=True)) + 0.1
    y = kernel.forward_codes(codes, x_scale, kernel.prepare(weights, scale), None, spec)
    assert torch.equal(y, sums_of(codes, weights, scale, spec, x_scale))


@every_kernel
@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("qmax", [127, 128])
@pytest.mark.parametrize("tokens", [1, 5])
def test_wide_sums_of_floats_are_rounded_once(name: str, levels: Levels, qmax: int, tokens: int) -> None:
    shape = (70, 2079)
    spec = spec_for(qmax, shape=shape, levels=levels)
    kernel, weights = KERNELS.get(name), codes_of(levels, *shape)
    weights[1], weights[2] = levels.high, levels.low
    x = torch.randn(tokens, 2079)
    x[0] = 3.3
    amax = x.abs().amax(-1, keepdim=True)
    codes = (x * (amax.reciprocal() * qmax)).round().clamp(-128, 127).to(torch.int8)
    scale, x_scale = torch.tensor(0.37), amax / torch.full_like(amax, qmax)
    y = kernel.forward(x, kernel.prepare(weights, scale), None, spec)
    assert torch.equal(y, sums_of(codes, weights, scale, spec, x_scale))
