"""AdaRound and AdaQuant: the errors of layers, against all roundings and against torch's own products."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitexp.quant import quantize, quantized_layers
from bitexp.quant.calibration import CALIBRATIONS
from bitexp.quant.calibration.adaround import Rounding
from bitexp.quant.calibration.reconstruction import measured, per_group
from bitexp.quant.layers import QuantizedLayer, set_lambda

INT = {"name": "int", "bits": 3}


def correlated(samples: int, features: int, seed: int = 0) -> Tensor:
    """Inputs as after a ReLU: none below 0, with something in common."""
    generator = torch.Generator().manual_seed(seed)
    own, common = (torch.randn(samples, n, generator=generator) for n in (features, 1))
    return (own + common).relu()


def linear(inputs: int, outputs: int, seed: int = 0, **quantizer: Any) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(inputs, outputs))
    quantize(net, {"weights": INT, "activations": "none", **quantizer})
    return net.eval()


def layer_of(net: nn.Module, name: str = "0") -> QuantizedLayer:
    return quantized_layers(net)[name]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_adaround_finds_the_best_of_all_roundings_of_a_tiny_layer(bits: int, seed: int) -> None:
    """Of 2^12 for each of four outputs."""
    net, x = linear(12, 4, seed, weights={"name": "int", "bits": bits}), correlated(256, 12, seed)
    weight = layer_of(net).weight.detach().clone()
    nearest = layer_of(net).quantized().dequantized()
    scale = layer_of(net).quantized().spread_scale()
    below = (weight / scale).floor()
    targets = x @ weight.T
    levels = layer_of(net).spec.levels
    up = torch.tensor(list(itertools.product((0.0, 1.0), repeat=12)))
    roundings = (below + up[:, None]).clamp(levels.low, levels.high) * scale
    best = (roundings @ x.T - targets.T).square().mean(-1).amin(0)
    CALIBRATIONS.get("adaround")(iterations=100)(net, [x])
    found = (x @ layer_of(net).quantized().dequantized().T - targets).square().mean(0)
    torch.testing.assert_close(found, best, rtol=1e-4, atol=1e-7)
    assert float(found.sum()) < float((x @ nearest.T - targets).square().mean(0).sum())


FREE = [
    "binary", "dlt", "elastic_binary", "fixed", "int", "lsq", "quest", "seq", "sign", "stochastic_ternary",
    "ternary_mean", "ternary_median", "twn",
]  # fmt: skip


@pytest.mark.parametrize("name", ["adaround", "adaquant"])
@pytest.mark.parametrize("weights", FREE)
def test_whatever_rounds_gets_nearer_to_the_outputs_of_full_precision(weights: str, name: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8, bias=False))
    quantize(net, {"weights": weights, "activations": "int8"})
    x = correlated(200, 16)
    with torch.no_grad():
        full = copy.deepcopy(net)
        set_lambda(full, 0.0)
        expected = full(x)
        before = (net(x) - expected).square().mean()
        errors = CALIBRATIONS.get(name)(iterations=50)(net, x.chunk(3))
        after = (net(x) - expected).square().mean()
    assert list(errors) == ["0", "2"]
    assert all(later < earlier for earlier, later in errors.values())
    assert after < 0.85 * before
    for layer in quantized_layers(net).values():
        levels, (codes, scale, _) = layer.spec.levels, layer.quantized()
        assert set(codes.unique().tolist()) <= set(range(levels.low, levels.high + 1, levels.stride))
        assert (codes.dtype, scale.dtype) == (torch.int8, torch.float32)
        assert (scale > 0).all()


@pytest.mark.parametrize("weights", ["sparse_ternary", "sherry", "codebook", "ttq", "tequila", "bit_planes"])
def test_codes_by_a_rule_are_refused_with_the_name_of_the_rule(weights: str) -> None:
    net = linear(16, 8, weights=weights)
    with pytest.raises(ValueError, match=f"layer 0: codes .* weights={weights} has a rule"):
        CALIBRATIONS.get("adaround")().check(net)


def test_adaround_leaves_the_scales_alone() -> None:
    net = linear(16, 8)
    before = layer_of(net).quantized().scale.clone()
    CALIBRATIONS.get("adaround")(iterations=5)(net, [correlated(50, 16)])
    assert torch.equal(layer_of(net).quantized().scale, before)


def test_adaquant_leaves_no_mean_error_where_there_is_a_bias() -> None:
    net, x = linear(16, 8), correlated(100, 16)
    expected = F.linear(x, layer_of(net).weight, layer_of(net).bias).mean(0)
    assert not torch.allclose(net(x).mean(0), expected, atol=1e-3)
    CALIBRATIONS.get("adaquant")(iterations=20)(net, [x])
    torch.testing.assert_close(net(x).mean(0), expected, rtol=1e-4, atol=1e-5)


CONVS: dict[str, dict[str, Any]] = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": (3, 1), "stride": (2, 1), "dilation": (2, 1)},
    "grouped": {"kernel_size": 3, "groups": 2, "padding": 1},
    "depthwise": {"kernel_size": 3, "groups": 4},
}


@pytest.mark.parametrize("arguments", CONVS.values(), ids=CONVS)
@pytest.mark.parametrize("act", ["none", "int8"])
def test_the_moments_give_the_error_of_the_outputs(arguments: dict[str, Any], act: str) -> None:
    """As the outputs themselves do, whatever the geometry; rounded activations and earlier layers count."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 8, bias=False, **arguments))
    quantize(net, {"weights": INT, "activations": act})
    full = copy.deepcopy(net.eval())
    set_lambda(full, 0.0)
    batches = [torch.randn(5, 3, 9, 9), torch.randn(3, 3, 9, 9)]
    moments = measured(full, net, "2", batches)
    with torch.no_grad():
        differences = torch.cat([net(batch) - full(batch) for batch in batches])
    groups = arguments.get("groups", 1)
    error = moments.error(per_group(layer_of(net, "2").quantized().dequantized(), groups)).flatten()
    torch.testing.assert_close(
        error.float(), differences.square().mean((0, 2, 3)), rtol=1e-3, atol=1e-6
    )  # fmt: skip


@pytest.mark.parametrize("changes", [
    {"norm": "layer"},
    {"transform": {"name": "hadamard", "applies_to": "both"}},
    {"weights": {"name": "int", "bits": 3, "granularity": "group", "group_size": 8}},
    {"weights": {"name": "int", "bits": 3, "granularity": "tensor"}},
    {"sparsifier": "top_k"},
    {"activations": "lsq_plus"},
], ids=["norm", "rotated", "groups", "tensor", "sparse", "shifted"])  # fmt: skip
def test_every_part_of_a_layer_is_taken_into_account(changes: dict[str, Any]) -> None:
    """What is said of the error is what the outputs say."""
    net, x = linear(16, 8, **{"activations": "int8", **changes}), correlated(100, 16)
    if "activations" in changes:
        net.train()(x)  # which calibrates the activations
        net.eval()
    full = copy.deepcopy(net)
    set_lambda(full, 0.0)
    with torch.no_grad():
        expected = full(x)
        for name in ("adaround", "adaquant"):
            ours = copy.deepcopy(net)
            (before, after) = CALIBRATIONS.get(name)(iterations=50)(ours, [x])["0"]
            power = (expected - full[0].bias).square().sum()  # type: ignore[index]
            for model, error in ((net, before), (ours, after)):
                assert float((model(x) - expected).square().sum() / power) == pytest.approx(error, rel=0.01)
            assert after <= before


def test_a_network_that_is_calibrated_twice_is_the_same_twice() -> None:
    nets = [linear(16, 8), linear(16, 8)]
    for net in nets:
        CALIBRATIONS.get("adaround")(iterations=30)(net, correlated(100, 16).chunk(2))
    assert torch.equal(layer_of(nets[0]).quantized().codes, layer_of(nets[1]).quantized().codes)


def test_single_changes_are_made_until_none_helps() -> None:
    net, x = linear(10, 3), correlated(60, 10)
    full = copy.deepcopy(net)
    set_lambda(full, 0.0)
    moments, layer = measured(full, net, "0", [x]), layer_of(net)
    quantized = layer.quantized()
    scale = quantized.spread_scale().expand(1, 3, 10)
    rounding = Rounding(layer.weight.detach()[None], scale, torch.zeros(1, 3, 10), layer.spec.levels, moments)
    up = rounding.flipped(torch.zeros(1, 3, 10))
    least = rounding.error(up)
    for turned in turns(10):
        other = (up - turned).abs()
        assert (rounding.error(other) > least * (1 - 1e-6)).all()


def turns(count: int) -> Sequence[Tensor]:
    """Every choice of one or two."""
    pairs = itertools.combinations_with_replacement(range(count), 2)
    return [F.one_hot(torch.tensor(pair), count).amax(0) for pair in pairs]


@pytest.mark.parametrize(("name", "options", "word"), [
    ("adaround", {"iterations": 0}, "iterations=0"),
    ("adaround", {"samples": 0}, "samples=0"),
    ("adaround", {"strength": 0.0}, "strength=0.0"),
    ("adaround", {"lr": 0.0}, "lr=0.0"),
    ("adaquant", {"scale_lr": -1.0}, "scale_lr=-1.0"),
])  # fmt: skip
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        CALIBRATIONS.get(name)(**options)
