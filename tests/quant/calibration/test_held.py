"""Weights that are held: what a calibration chose stays, in checkpoints and frozen layers too."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bitexp.deploy.frozen import freeze
from bitexp.quant import Quantized, quantize, quantized_layers


@pytest.fixture(params=["int", "ternary_median", "binary", "dlt", "lsq"])
def net(request: pytest.FixtureRequest) -> nn.Module:
    return made(request.param)


def made(weights: str) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 8))
    quantize(net, {"weights": weights, "activations": "int8"})
    return net.eval()


def other(net: nn.Module) -> Quantized:
    """Codes that rounding to nearest would not give."""
    codes, scale, shift = quantized_layers(net)["0"].quantized()
    return Quantized(codes.flip(0), scale * 1.5, shift)


def test_held_weights_are_those_of_every_forward_and_of_the_frozen_twin(net: nn.Module) -> None:
    held, x = other(net), torch.randn(5, 16)
    layer = quantized_layers(net)["0"]
    layer.hold(held)
    torch.testing.assert_close(layer.weight, held.dequantized(), rtol=0, atol=0)
    expected = net(x)
    layer.weight.data.mul_(-1)  # whatever the latents are
    assert torch.equal(net(x), expected)
    for ours, theirs in zip(layer.quantized(), held, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)
    twin = copy.deepcopy(net)
    freeze(twin)
    assert torch.equal(twin(x), expected)


def test_they_are_in_the_state_that_another_network_loads(net: nn.Module) -> None:
    x = torch.randn(5, 16)
    fresh = copy.deepcopy(net)
    assert not any("held" in name for name in fresh.state_dict())
    quantized_layers(net)["0"].hold(other(net))
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(x), net(x))
    assert fresh.half().float()[0].quantized().scale.dtype == torch.float32  # type: ignore[index, operator]
    assert torch.equal(fresh[0].quantized().scale, net[0].quantized().scale)  # type: ignore[index, operator]


def test_codes_of_another_shape_are_refused() -> None:
    net = made("int")
    quantized_layers(net)["0"].hold(other(net))
    state = {**net.state_dict(), "0.parts.weights.held_codes": torch.zeros(8, 4, dtype=torch.int8)}
    with pytest.raises(RuntimeError, match="held_codes"):
        made("int").load_state_dict(state)
