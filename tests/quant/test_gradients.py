"""Gradients of BitLinear and BitConv2d: the textbook's, in float64 by torch's own operators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from bitexp.quant.layers import BitConv2d, BitLinear
from bitexp.quant.product import product_grads
from tests.support.layers import (
    CONVS,
    LINEAR,
    NORMS,
    VARIANTS,
    assert_equals_textbook,
    small,
    textbook,
)  # fmt: skip
from tests.support.quantizers import MakeQuantizer as Make


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", [(48,), (9, 48), (2, 3, 48)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("variant", LINEAR)
def test_linear_gradients_are_the_textbook_straight_through_ones(
    make_quantizer: Make, variant: str, norm: str, bias: bool, shape: tuple[int, ...]
) -> None:
    quantizer = make_quantizer("ternary_mean", norm=norm, **LINEAR[variant])
    layer = BitLinear(nn.Linear(48, 17, bias=bias), quantizer)
    assert_equals_textbook(layer, torch.randn(shape) * 2 + 0.3)


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_convolution_gradients_are_the_textbook_straight_through_ones(
    make_quantizer: Make, variant: str, norm: str, conv: str
) -> None:
    quantizer = make_quantizer("ternary_mean", norm=norm, **VARIANTS[variant])
    layer = BitConv2d(nn.Conv2d(4, 8, **CONVS[conv]), quantizer)
    assert_equals_textbook(layer, torch.randn(3, 4, 9, 8) * 2 + 0.3)


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_pointwise_strides_are_not_left_to_the_kernel_that_writes_past_its_memory(
    make_quantizer: Make, two_threads: None
) -> None:
    """It broke the heap about every second time; which way a gradient goes is seen by its bits."""
    quantizer = make_quantizer("ternary_mean", norm="layer")
    layer = BitConv2d(nn.Conv2d(3, 48, 1, stride=2), quantizer)
    x, weight = torch.randn(255, 3, 32, 32), torch.randn(48, 3, 1, 1)
    last = x.movedim(1, -1).contiguous().movedim(-1, 1)
    grad = torch.randn(255, 48, 16, 16)
    expected = product_grads(grad, x, weight, layer.spec, True, True)
    for _ in range(5):
        given = last.clone(memory_format=torch.preserve_format)
        assert given.is_contiguous(memory_format=torch.channels_last)
        for ours, theirs in zip(
            product_grads(grad, given, weight, layer.spec, True, True), expected, strict=True
        ):
            assert ours is not None
            assert theirs is not None
            assert torch.equal(ours, theirs)
            assert ours.is_contiguous()
        layer(x).square().sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("bias", [True, False])
def test_only_the_gradients_that_are_asked_for_are_computed(make_quantizer: Make, bias: bool) -> None:
    layer = BitLinear(nn.Linear(6, 4, bias=bias), make_quantizer("ternary_mean"))
    layer.weight.requires_grad_(False)
    x = torch.randn(3, 6, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None
    layer.weight.requires_grad_(True)
    layer(torch.randn(3, 6)).sum().backward()
    assert layer.weight.grad is not None


def test_a_layer_that_is_used_twice_adds_both_gradients(make_quantizer: Make) -> None:
    layer = BitLinear(nn.Linear(24, 24), make_quantizer("ternary_mean"))
    x = torch.randn(5, 24)
    layer(layer(x)).square().sum().backward()
    weight, bias = (p.detach().clone().requires_grad_() for p in (layer.weight, layer.bias))
    inner = textbook(layer, x, weight, bias)
    textbook(layer, inner, weight, bias).square().sum().backward()
    for ours, theirs in ((layer.weight, weight), (layer.bias, bias)):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4 * float(theirs.grad.abs().max()))


def test_checkpointing_gives_the_same_gradients(make_quantizer: Make) -> None:
    layer, x = small(make_quantizer("ternary_mean"), conv=False)
    again: Any = checkpoint(layer, x, use_reentrant=False)
    leaves = [x, layer.weight, layer.bias]
    expected = torch.autograd.grad(layer(x).square().sum(), leaves)
    for ours, theirs in zip(torch.autograd.grad(again.square().sum(), leaves), expected, strict=True):
        assert torch.equal(ours, theirs)
