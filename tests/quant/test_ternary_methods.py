"""Ternary methods against the packages, figures and closed forms of their papers."""

from __future__ import annotations

import itertools
import math

import bitlinear.bitlinear
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from bitexp.deploy.frozen import freeze_layer
from bitexp.kernels import KERNELS
from bitexp.quant import WEIGHTS, BitConv2d, BitLinear, WeightQuantizer, set_progress
from bitexp.quant.options import LayerOptions
from bitexp.quant.spec import Part
from tests.support.pareto import pareto

REFERENCE = KERNELS.get("reference")


def gaussian(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def made(name: str, weight: Tensor, **options: object) -> WeightQuantizer:
    part: WeightQuantizer = WEIGHTS.get(name)(weight, **options)
    return part


def below(limit: float) -> float:
    """The share of Gaussian numbers that are smaller in magnitude."""
    return math.erf(limit / math.sqrt(2))


# ternary weight networks


@pytest.mark.parametrize("threshold", [0.7, 0.75])
def test_twn_has_as_many_zeros_of_gaussian_weights_as_its_threshold_says(threshold: float) -> None:
    weight = gaussian(500, 1000)
    codes = made("twn", weight, threshold=threshold).quantize(weight).codes
    expected = below(threshold * math.sqrt(2 / math.pi))
    assert float((codes == 0).float().mean()) == pytest.approx(expected, abs=0.002)
    assert below(0.7 * math.sqrt(2 / math.pi)) == pytest.approx(0.4235, abs=1e-4)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_the_scale_of_twn_is_that_of_least_squares_for_its_codes(granularity: str) -> None:
    """alpha = <w, t> / <t, t> (arXiv 1605.04711, eq. 3), which is nearly the best ternary approximation."""
    weight = gaussian(8, 4096)
    codes, scale, _ = made("twn", weight, granularity=granularity).quantize(weight)
    t = codes.double()
    sums = [(each.sum() if granularity == "tensor" else each.sum(-1)) for each in (weight * t, t * t)]
    assert_close(scale.double(), sums[0] / sums[1], rtol=1e-5, atol=0)
    error = float((weight - made("twn", weight).quantize(weight).dequantized()).square().mean())
    assert error == pytest.approx(0.190, abs=0.01)  # the optimum for Gaussian numbers


# TernaryLLM


def test_dlt_begins_as_ternary_mean_and_learns_as_lsq_with_three_levels() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(32, 16, bias=False)
    layer = BitLinear(linear, LayerOptions(Part("dlt")))
    part = layer.parts.weights
    plain = made("ternary_mean", linear.weight, granularity="channel").quantize(linear.weight)
    assert torch.equal(layer.quantized().codes, plain.codes)
    assert torch.equal(layer.quantized().dequantized(), plain.dequantized())
    with torch.no_grad():
        part.alpha.mul_(0.7)
        part.gamma.copy_(0.01 * torch.randn(16))
    x, target = torch.randn(5, 32), torch.randn(5, 16)
    (layer(x) * target).sum().backward()

    weight = linear.weight.detach().clone().requires_grad_()
    alpha, gamma = (p.detach().clone()[:, None].requires_grad_() for p in (part.alpha, part.gamma))
    theirs = pareto().LsqBinaryTernaryExtension.apply(weight, alpha, 0, False) + gamma
    (F.linear(x, theirs) * target).sum().backward()
    assert_close(layer.quantized().dequantized(), theirs.detach(), rtol=0, atol=2e-7)
    assert_close(linear.weight.grad, weight.grad, rtol=0, atol=1e-6)
    assert_close(part.alpha.grad, alpha.grad[:, 0], rtol=1e-5, atol=1e-6)
    assert_close(part.gamma.grad, gamma.grad[:, 0], rtol=1e-5, atol=1e-5)


# trained ternary quantization


@pytest.mark.parametrize("init", ["mean", "one"])
def test_ttq_has_a_scale_for_either_side_of_its_threshold(init: str) -> None:
    weight = torch.tensor([[1.0, 0.5, 0.04, -0.04, -0.2, -2.0], [0.0, 3.0, -0.16, -0.14, 0.14, 0.16]])
    part = made("ttq", weight, init=init)  # the threshold is 0.05 * 3
    ours = part.quantize(weight).dequantized()
    means = (1 + 0.5 + 3 + 0.16) / 4, (0.2 + 2 + 0.16) / 3
    p, n = (1.0, 1.0) if init == "one" else means
    assert_close(ours, torch.tensor([[p, p, 0, 0, -n, -n], [0, p, -n, 0, 0, p]]))
    rows = made("ttq", weight, granularity="channel").quantize(weight)
    assert rows.scale.shape == (2, 2)
    assert_close(rows.scale, torch.tensor([[0.75, 1.58], [1.1, 0.16]]))  # the second threshold is 0.15 too


# Tequila


@pytest.mark.parametrize("bias", [True, False])
def test_zero_weights_of_tequila_are_a_bias_that_is_folded_in_when_frozen(bias: bool) -> None:
    torch.manual_seed(0)
    options = LayerOptions(Part("tequila", {"share": 0.1}), Part("int8"), norm="layer")
    for layer, shape in (
        (BitLinear(nn.Linear(32, 8, bias=bias), options), (5, 32)),
        (BitConv2d(nn.Conv2d(4, 8, 3, bias=bias), options), (2, 4, 6, 6)),
    ):
        x = torch.randn(shape)
        plain = LayerOptions(Part("ternary_mean", {"granularity": "channel"}), Part("int8"), norm="layer")
        twin = type(layer)(layer, plain)  # type: ignore[arg-type]
        zeros = layer.quantized().codes == 0
        offset = 0.1 * (layer.weight * zeros).flatten(1).sum(-1)
        per_output = offset if x.dim() == 2 else offset[:, None, None]
        assert_close(layer(x), twin(x) + per_output, rtol=1e-5, atol=1e-5)
        frozen = freeze_layer(layer.eval(), "auto", REFERENCE)
        assert torch.equal(frozen(x), layer(x))
        assert frozen.bias is not None
        grads = [torch.autograd.grad(m(x).sum(), layer.weight)[0] for m in (layer, twin)]
        tokens = layer(x).numel() // 8
        assert_close(grads[0] - grads[1], 0.1 * tokens * zeros.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["tequila", "ttq"])
def test_what_is_no_single_scaled_sum_is_refused_with_a_scaled_bias(name: str) -> None:
    part = Part(name, {"granularity": "tensor"})
    with pytest.raises(ValueError, match=f"bias=scaled does not go with weights={name}: use bias=plain"):
        LayerOptions(part, Part("int8"), bias="scaled")


# zeros by rule


@given(rows=st.integers(1, 5), inputs=st.integers(1, 30), keep=st.integers(1, 6), seed=st.integers(0, 99))
def test_the_largest_of_every_block_are_kept_and_of_equal_ones_the_first(
    rows: int, inputs: int, keep: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randint(-3, 4, (rows, inputs), generator=draw).float()
    part = made("sparse_ternary", weight, keep=keep, block=6)
    dense = made("ternary_mean", weight).quantize(weight)
    codes, scale, _ = part.quantize(weight)
    assert torch.equal(scale, dense.scale)
    for row, found, whole in zip(weight.tolist(), codes.tolist(), dense.codes.tolist(), strict=True):
        for start in range(0, inputs, 6):
            places = range(start, min(start + 6, inputs))
            kept = sorted(places, key=lambda place: (-abs(row[place]), place))[:keep]
            assert [found[p] for p in places] == [whole[p] if p in kept else 0 for p in places]
    assert part.density == keep / 6


def test_a_pattern_of_six_in_eight_holds_less_information_than_free_codes() -> None:
    weight = gaussian(4, 8)
    patterns = sum(1 for codes in itertools.product((-1, 0, 1), repeat=8) if sum(map(abs, codes)) <= 6)
    assert made("sparse_ternary", weight).bits == pytest.approx(math.log2(patterns) / 8)


@given(rows=st.integers(1, 5), inputs=st.integers(1, 30), seed=st.integers(0, 99))
def test_sherry_leaves_the_smallest_of_four_out_and_takes_signs_of_the_others(
    rows: int, inputs: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randint(-3, 4, (rows, inputs), generator=draw).float()
    codes, scale, _ = made("sherry", weight).quantize(weight)
    for row, found, found_scale in zip(weight.tolist(), codes.tolist(), scale.tolist(), strict=True):
        magnitudes = []
        for start in range(0, inputs, 4):
            four = row[start : start + 4]
            left_out = max(range(4), key=lambda i: (-abs(four[i]), i)) if len(four) == 4 else None
            signs = [0 if i == left_out else 1 if w >= 0 else -1 for i, w in enumerate(four)]
            assert found[start : start + 4] == signs
            magnitudes += [abs(w) for i, w in enumerate(four) if i != left_out]
        assert found_scale == pytest.approx(max(sum(magnitudes) / len(magnitudes), 1e-5), rel=1e-6)


def test_four_weights_of_sherry_take_five_bits() -> None:
    layer = BitLinear(nn.Linear(256, 8), LayerOptions(Part("sherry")))
    frozen = freeze_layer(layer, "auto", REFERENCE)
    assert frozen.packed.numel() * 8 == 8 * 256 * 1.25
    assert layer.spec.levels.bits == 1.25
    conv = BitConv2d(nn.Conv2d(3, 8, 3), LayerOptions(Part("sherry"), Part("int8")))
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(freeze_layer(conv, "auto", REFERENCE)(x), conv(x))  # rows of 27 are no whole fours


@pytest.mark.parametrize("name", ["sherry", "sparse_ternary"])
def test_a_group_of_inputs_that_cuts_blocks_is_refused(name: str) -> None:
    weights = Part(name, {"granularity": "group", "group_size": 6})
    with pytest.raises(ValueError, match="group_size=6 must be a multiple of"):
        LayerOptions(weights)


def test_arenas_adds_the_latent_weights_while_it_trains_and_ends_with_none() -> None:
    torch.manual_seed(0)
    options = LayerOptions(Part("sherry", {"arenas": 0.5}), norm="layer")
    layer, x = BitLinear(nn.Linear(32, 8, bias=False), options), torch.randn(5, 32)
    model = nn.Sequential(layer)
    alone = layer(x)
    normed = F.layer_norm(x, (32,))
    for share, most in ((0.0, 0.0), (0.05, 0.25), (0.1, 0.5), (0.55, 0.25), (1.0, 0.0)):
        set_progress(model, share)
        layer.train()
        assert_close(layer(x), alone + most * F.linear(normed, layer.weight), rtol=1e-5, atol=1e-5)
        (grad,) = torch.autograd.grad(layer(x).sum(), layer.weight)
        assert_close(grad, (1 + most) * normed.sum(0).expand_as(grad), rtol=1e-4, atol=1e-5)
        assert torch.equal(layer.eval()(x), alone)


# stochastic ternary weights


def test_drawn_codes_are_those_of_bitlinear() -> None:
    weight = gaussian(40, 50)
    part = made("stochastic_ternary", weight)
    torch.manual_seed(0)
    drawn = part.quantize(weight, training=True)
    torch.manual_seed(0)
    theirs = bitlinear.bitlinear.sample(weight / drawn.scale, (-1, 1))
    assert float((drawn.codes != theirs).float().mean()) < 0.001  # where a draw is within a rounding


def test_codes_are_drawn_by_their_distance_in_training_and_rounded_in_evaluation() -> None:
    weight = torch.tensor([[0.0, 0.25, -0.5, 0.75, 1.0, -3.5]])  # mean 1
    layer = BitLinear(nn.Linear(6, 1), LayerOptions(Part("stochastic_ternary")))
    with torch.no_grad():
        layer.weight.copy_(weight)
    torch.manual_seed(0)
    drawn = torch.stack([layer.parts.weights.quantize(weight, training=True).codes for _ in range(4000)])
    expected = torch.tensor([[0.0, 0.25, -0.5, 0.75, 1.0, -1.0]])
    assert_close(drawn.float().mean(0), expected, rtol=0, atol=0.04)
    x = torch.randn(3, 6)
    outputs = {tuple(layer(x).flatten().tolist()) for _ in range(50)}
    assert len(outputs) > 3
    rounded = BitLinear(layer, LayerOptions(Part("ternary_mean")))  # type: ignore[arg-type]
    state = torch.get_rng_state()
    assert torch.equal(layer.eval()(x), rounded(x))
    assert torch.equal(layer.quantized().codes, rounded.quantized().codes)
    assert torch.equal(torch.get_rng_state(), state)
