"""Layers under autocast and in bf16; the control, which is the ordinary layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

from bitexp.quant.absmax import absmax_codes
from tests.support.layers import (
    NORMS,
    norm_of_torch,
    ordinary,
    small,
)  # fmt: skip
from tests.support.quantizers import MakeQuantizer as Make


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_under_autocast_the_sum_stays_exact_and_gradients_are_products_of_bf16(
    make_quantizer: Make, norm: str, conv: bool
) -> None:
    layer, x = small(make_quantizer("ternary_median", norm=norm), conv)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected.bfloat16())
    leaves = [x, layer.weight, layer.bias]
    out_grad = torch.randn_like(y)
    theirs = torch.autograd.grad(expected, leaves, out_grad.float())
    for inside in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            ours = torch.autograd.grad(y, leaves, out_grad, retain_graph=True)
        for a, e in zip(ours, theirs, strict=True):
            assert a.dtype == torch.float32
            assert_close(a, e, rtol=0, atol=2**-7 * float(e.abs().max()))
        assert torch.equal(ours[2], theirs[2])
        assert not torch.equal(ours[1], theirs[1])


def test_under_autocast_the_factors_are_rounded_to_bf16_and_nothing_else(make_quantizer: Make) -> None:
    layer, x = small(make_quantizer("ternary_mean", norm="none"), conv=False)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    out_grad = torch.randn_like(y)
    grad_x, grad_w = torch.autograd.grad(y, [x, layer.weight], out_grad)
    codes, step = absmax_codes(x.detach(), 127, (-1,))
    weights = layer.quantized().dequantized().bfloat16()
    assert torch.equal(grad_x, (out_grad @ weights).float())
    inputs = (codes * step).bfloat16().flatten(0, 1)
    assert torch.equal(grad_w, (out_grad.flatten(0, 1).t() @ inputs).float())


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_bf16_inputs_and_weights_give_the_sum_of_fp32_rounded_once(
    make_quantizer: Make, norm: str, conv: bool
) -> None:
    layer, x = small(make_quantizer("ternary_mean", norm=norm), conv)
    layer, x = layer.bfloat16(), x.detach().bfloat16().requires_grad_()
    wide, wide_x = copy.deepcopy(layer).float(), x.detach().float().requires_grad_()
    y, expected = layer(x), wide(wide_x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected.bfloat16())
    out_grad = torch.randn_like(y)
    ours = torch.autograd.grad(y, [x, layer.weight, layer.bias], out_grad)
    theirs = torch.autograd.grad(expected, [wide_x, wide.weight, wide.bias], out_grad.float())
    for a, e in zip(ours, theirs, strict=True):
        assert a.dtype == torch.bfloat16
        assert_close(a.float(), e, rtol=0, atol=2**-6 * float(e.abs().max()))


@pytest.mark.parametrize("conv", [False, True])
def test_the_control_is_the_norm_before_an_ordinary_layer_in_every_precision(
    make_quantizer: Make, conv: bool
) -> None:
    layer, x = small(make_quantizer("full_norm"), conv)
    normed = norm_of_torch(x, "layer", 1 if conv else -1)
    plain = ordinary(layer)
    assert torch.equal(layer(x), plain(normed))
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = layer(x), plain(normed)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)
    weights = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad((y * weights).sum(), [x, layer.weight]),
        torch.autograd.grad((expected * weights).sum(), [x, layer.weight]),
        strict=True,
    ):
        assert_close(ours, theirs)
