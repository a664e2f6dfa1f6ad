"""Whole layers and models: frozen ones have the bits of training, fused and replayed ones nearly so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from bitexp.deploy.cuda_graph import Replay
from bitexp.deploy.frozen import freeze, freeze_layer
from bitexp.deploy.fused_norm import fuse_norms
from bitexp.kernels import KERNELS
from bitexp.kernels.gpu.product import Int8GpuBackend
from bitexp.quant.layers import BitConv2d, BitLinear, set_backend

Make = Callable[..., Any]

TRITON, REFERENCE = KERNELS.get("triton"), KERNELS.get("reference")


@pytest.mark.parametrize("preset", ["ternary_mean", "ternary_median", "binary"])
@pytest.mark.parametrize("tokens", [1, 6])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm": "none"},
        {"weights": {"granularity": "channel"}},
        {"activations": "none"},
        {"activations": {"qmax": 128}, "bias": "scaled"},
    ],
    ids=str,
)
def test_a_frozen_layer_gives_the_bits_of_training(
    make_quantizer: Make, device: str, preset: str, tokens: int, changes: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    layer = BitLinear(nn.Linear(70, 9), make_quantizer(preset, **changes)).to(device)
    x = torch.randn(tokens, 70, device=device)
    layer.set_backend(Int8GpuBackend())
    with torch.no_grad():
        expected = layer(x)
        assert torch.equal(freeze_layer(layer, "auto", TRITON)(x), expected)
        assert torch.equal(freeze_layer(layer, "auto", REFERENCE)(x), expected)


def network(make_quantizer: Make, device: str) -> nn.Sequential:
    torch.manual_seed(0)
    quantizer = make_quantizer("ternary_mean")
    layers = [BitConv2d(nn.Conv2d(2, 8, 3), quantizer), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layers += [BitLinear(nn.Linear(8, 72), quantizer), nn.GELU(), BitLinear(nn.Linear(72, 4), quantizer)]
    return nn.Sequential(*layers).to(device).eval()


@pytest.mark.parametrize("batch", [1, 9])
def test_a_frozen_model_gives_the_bits_of_the_trained_one(
    make_quantizer: Make, device: str, batch: int
) -> None:
    model = network(make_quantizer, device)
    set_backend(model, TRITON.backend)
    x = torch.randn(batch, 2, 6, 6, device=device)
    with torch.no_grad():
        expected = model(x)
        freeze(model, "auto", TRITON)
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 9])
def test_fused_norms_change_little(make_quantizer: Make, device: str, batch: int) -> None:
    model = network(make_quantizer, device)
    freeze(model, "auto", TRITON)
    x = torch.randn(batch, 2, 6, 6, device=device)
    with torch.no_grad():
        expected = model(x)
        assert fuse_norms(model) == ["3", "5"]
        torch.testing.assert_close(model(x), expected, atol=0.05, rtol=0.05)


@pytest.mark.gpu  # the interpreter cuts bf16 off where it should round
def test_a_fused_layer_answers_in_bf16(make_quantizer: Make, device: str) -> None:
    model = nn.Sequential(BitLinear(nn.Linear(70, 9), make_quantizer("ternary_mean", norm="none"))).to(device)
    freeze(model, "auto", TRITON)
    for tokens in (1, 6, 65):
        x = torch.randn(tokens, 70, device=device, dtype=torch.bfloat16)
        expected = model(x)
        fused = copy.deepcopy(model)
        fuse_norms(fused)
        assert torch.equal(fused(x), expected)


@pytest.mark.gpu
def test_a_replayed_model_gives_the_bits_of_the_model(make_quantizer: Make, device: str) -> None:
    model = network(make_quantizer, device)
    freeze(model, "auto", TRITON)
    for batch in (1, 9, 80):
        x, other = torch.randn(2, batch, 2, 6, 6, device=device)
        replay = Replay(model, x)
        with torch.no_grad():
            assert torch.equal(replay(other), model(other))
            assert torch.equal(replay(x), model(x))
        with pytest.raises(ValueError, match="record another"):
            replay(x[:0])
