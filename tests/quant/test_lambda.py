"""lambda: from the ordinary layer at 0 to the integers at 1."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from bitexp.quant.layers import BitLinear, QuantizedLayer, set_lambda
from bitexp.quant.options import LayerOptions
from bitexp.quant.spec import Part
from tests.support.layers import (
    LINEAR,
    NORMS,
    norm_of_torch,
    ordinary,
    small,
    small_of,
)  # fmt: skip
from tests.support.quantizers import MakeQuantizer as Make


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("bias", ["plain", "scaled"])
@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_lambda_0_is_the_norm_and_the_ordinary_layer(
    make_quantizer: Make, norm: str, conv: bool, bias: str
) -> None:
    layer, x = small(make_quantizer("ternary_mean", norm=norm, bias=bias), conv)
    if bias == "scaled":
        layer.bias = None  # it stays scaled at every lambda, as in PyPI bitlinear
    layer.set_lambda(0.0)
    normed = norm_of_torch(x, norm, 1 if conv else -1)
    expected = ordinary(layer)(normed)
    assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)
    leaves = [x, layer.weight]
    theirs = torch.autograd.grad(expected.square().sum(), leaves)
    for a, e in zip(torch.autograd.grad(layer(x).square().sum(), leaves), theirs, strict=True):
        assert_close(a, e, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("variant", LINEAR)
def test_lambda_1_is_the_integer_path(make_quantizer: Make, variant: str) -> None:
    layer, x = small_of(variant, conv=False)
    expected = layer(x)
    layer.set_lambda(0.5)
    assert not torch.equal(layer(x), expected)
    layer.set_lambda(1.0)
    assert not layer.phasing
    assert torch.equal(layer(x), expected)
    layer.phasing = True  # the mixing path ends where the integer path is
    assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("name", ["binary", "ternary_mean", "ternary_median"])
def test_lambda_one_half_is_halfway_for_activations_and_for_weights(
    make_quantizer: Make, name: str, conv: bool
) -> None:
    layer, x = small(make_quantizer(name), conv)
    layer.set_lambda(0.5)
    y = layer(x)

    normed = norm_of_torch(x, "layer", 1 if conv else -1)
    dims = (1, 2, 3) if conv else (-1,)
    step = normed.abs().amax(dims, keepdim=True) / 127
    quantized = (normed / step).round() * step
    codes, w_step, _ = layer.quantized()
    halfway = copy.deepcopy(layer)
    halfway.weight = nn.Parameter((layer.weight.detach() + codes * w_step) / 2)
    assert_close(y, ordinary(halfway)((normed + quantized) / 2), rtol=1e-5, atol=1e-5)


def test_lambda_reaches_a_scaled_bias_of_a_convolution(make_quantizer: Make) -> None:
    layer, x = small(make_quantizer("reloaded"), conv=True)
    expected = layer(x)
    layer.phasing = True
    assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_set_lambda_reaches_every_layer_of_a_model(make_quantizer: Make) -> None:
    quantizer = make_quantizer("ternary_mean")
    model = nn.Sequential(
        BitLinear(nn.Linear(4, 4), quantizer), nn.Sequential(BitLinear(nn.Linear(4, 4), quantizer))
    )
    set_lambda(model, 0.25)
    layers = [module for module in model.modules() if isinstance(module, QuantizedLayer)]
    assert [(float(layer.mix), layer.phasing) for layer in layers] == [(0.25, True)] * 2


def test_what_weights_add_to_the_outputs_is_phased_in_with_them() -> None:
    torch.manual_seed(0)
    weights = Part("tequila", {"share": 10.0})
    layer, x = BitLinear(nn.Linear(32, 8), LayerOptions(weights, norm="layer")), torch.randn(5, 32)
    layer.set_lambda(0.0)
    full = F.linear(F.layer_norm(x, (32,)), layer.weight, layer.bias)
    assert_close(layer(x), full, rtol=1e-5, atol=1e-5)
    layer.set_lambda(1.0)
    whole = layer(x)
    layer.set_lambda(0.25)
    assert_close(layer(x), 0.75 * full + 0.25 * whole, rtol=1e-4, atol=1e-4)
