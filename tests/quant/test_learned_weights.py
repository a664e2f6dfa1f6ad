"""Every rule for a gradient against central differences of the function whose gradient it is to be.

That function is the quantized weight with each rounding replaced by the identity and a constant, `surrogate`
below, in float64.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bitexp.quant import WEIGHTS, WeightQuantizer
from bitexp.quant.per_row import spread
from bitexp.quant.product import Quantized

Surrogate = Callable[..., Tensor]


class At:
    """A quantizer at some latent weights, with what a surrogate keeps from there as constants; in float64."""

    def __init__(self, part: WeightQuantizer, weight: Tensor) -> None:
        self.part, self.quantized = part, part.quantize(weight)
        self.codes, self.weight = self.quantized.codes.double(), weight.double()
        self.learned = [parameter.detach().double() for parameter in part.learned()]

    def moved(self, weight: Tensor) -> Tensor:
        """How far the latents have moved."""
        return weight - self.weight


def lsq(at: At, weight: Tensor, step: Tensor, *shift: Tensor) -> Tensor:
    levels, per_row = at.part.levels, spread(step, weight)
    ratio = at.weight / spread(at.learned[0], weight)
    inside = (ratio >= levels.low) & (ratio <= levels.high)
    quantized = torch.where(inside, weight + (at.codes - ratio) * per_row, at.codes * per_row)
    return quantized + sum(spread(each, weight) for each in shift)


def elastic_binary(at: At, weight: Tensor, alpha: Tensor) -> Tensor:
    inside = at.weight.abs() <= spread(at.learned[0], weight)
    return at.codes * spread(alpha, weight) + at.moved(weight) * inside


def seq(at: At, weight: Tensor, alpha: Tensor) -> Tensor:
    ternary = at.part.levels.count == 3
    value = at.codes * (2 / 3 if ternary else 1 / 4)  # in units of alpha
    ratio = at.weight / spread(at.learned[0], weight)
    per_row, start = spread(alpha, weight), spread(at.learned[0], weight)
    # at 1.58 bits the authors' code has a slope of 1 where the level is 2/3
    slope = ratio.sign() if ternary else value
    outside = value * start + slope * (per_row - start)
    return torch.where(ratio.abs() <= 0.99, weight + (value - ratio) * per_row, outside)


def ttq(at: At, weight: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    above, below = at.codes
    factor = above * at.learned[0] - below * at.learned[1] + (above + below == 0)
    return above * positive + below * negative + factor * at.moved(weight)


def bit_planes(at: At, weight: Tensor, latents: Tensor) -> Tensor:
    bits = (at.learned[0] > 0) + latents - at.learned[0]
    powers = 2.0 ** torch.arange(len(latents), dtype=torch.float64).reshape(-1, 1, 1)
    sign = torch.where(at.weight >= 0, 1.0, -1.0) + at.moved(weight)
    return sign * (powers * bits).sum(0) * spread(at.quantized.scale.double(), weight)


def dorefa(at: At, weight: Tensor) -> Tensor:
    return weight.tanh() / at.weight.tanh().abs().max()


def identity(at: At, weight: Tensor) -> Tensor:
    return weight


CASES: list[tuple[str, dict[str, Any], Surrogate, float]] = [  # weights as one row count 30 for a step size
    ("lsq", {"bits": 3}, lsq, 1 / (30 * 3) ** 0.5),
    ("lsq", {"bits": 2, "granularity": "tensor"}, lsq, 1 / 30**0.5),
    ("dlt", {}, lsq, 1 / 30**0.5),
    ("dlt", {"granularity": "tensor"}, lsq, 1 / 30**0.5),
    ("elastic_binary", {}, elastic_binary, 1 / 30**0.5),
    ("elastic_binary", {"granularity": "tensor"}, elastic_binary, 1 / 30**0.5),
    ("seq", {"bits": 1.58}, seq, 1 / 30**0.5),
    ("seq", {"bits": 2}, seq, 1 / 30**0.5),
    ("seq", {"bits": 2, "granularity": "tensor"}, seq, 1 / 30**0.5),
    ("ttq", {"threshold": 0.3}, ttq, 1.0),
    ("bit_planes", {"bits": 4}, bit_planes, 1.0),
    ("dorefa", {"bits": 3}, dorefa, 1.0),
    ("dorefa", {"bits": 1}, identity, 1.0),
    *((name, {}, identity, 1.0) for name in ("twn", "sherry", "sparse_ternary", "codebook", "int")),
]


@pytest.mark.parametrize(("name", "options", "surrogate", "factor"), CASES)
def test_gradients_are_those_of_central_differences(
    name: str, options: dict[str, Any], surrogate: Surrogate, factor: float
) -> None:
    draw = torch.Generator().manual_seed(0)
    weight, grad = (torch.randn(5, 6, generator=draw) for _ in range(2))
    part = WEIGHTS.get(name)(weight, **options)
    with torch.no_grad():
        for parameter in part.learned():
            parameter.mul_(0.7)  # so that some weights are clipped
    at = At(part, weight)
    leaves = [weight.double(), *at.learned]
    if surrogate not in (identity, dorefa):
        assert_close(surrogate(at, *leaves), at.quantized.dequantized().double(), rtol=1e-5, atol=1e-5)
    found = part.gradients(grad, weight, at.quantized, *(p.detach() for p in part.learned()))
    assert len(found) == len(leaves)
    for place, gradient in enumerate(found):
        expected = differences(functools.partial(surrogate, at), leaves, place, grad.double())
        scaled = factor if place == 1 and factor != 1 else 1.0  # a shift has none
        assert_close(gradient.double(), expected * scaled, rtol=1e-4, atol=1e-5)
        assert gradient.any()


def differences(function: Surrogate, leaves: list[Tensor], place: int, grad: Tensor) -> Tensor:
    """The gradient of `sum(grad * function(leaves))` with respect to one leaf, element by element."""
    found = torch.zeros_like(leaves[place])
    for element in range(found.numel()):
        sums = []
        for step in (1e-4, -1e-4):
            moved = [leaf.clone() for leaf in leaves]
            moved[place].view(-1)[element] += step
            sums.append((grad * function(*moved)).sum())
        found.view(-1)[element] = (sums[0] - sums[1]) / 2e-4
    return found


def test_the_weights_of_tequila_have_the_gradient_of_the_bias_where_they_are_zero() -> None:
    weight = torch.randn(5, 6, requires_grad=True)
    part = WEIGHTS.get("tequila")(weight, share=0.25)
    codes = part.quantize(weight).codes
    offset = part.output_offset(weight, codes)
    assert offset is not None
    zeros = (codes == 0).float()
    assert_close(offset.detach(), 0.25 * (weight.detach() * zeros).sum(-1))
    grad = torch.randn(5)
    (found,) = torch.autograd.grad(offset, weight, grad)
    assert_close(found, 0.25 * grad[:, None] * zeros)


def test_a_dequantized_weight_is_the_sum_of_its_planes_and_the_shift() -> None:
    pairs = torch.tensor(list(itertools.product((-1, 0, 1), repeat=2)), dtype=torch.int8)
    codes, scale = pairs.t().reshape(2, 3, 3), torch.rand(2, 3)
    weights = Quantized(codes, scale, torch.rand(3))
    assert weights.shift is not None
    expected = sum(codes[p] * scale[p][:, None] for p in range(2)) + weights.shift[:, None]
    assert_close(weights.dequantized(), expected)
    assert torch.equal(weights.code_of_each() == 0, (codes == 0).all(0))
    assert len(weights.code_of_each().unique()) == 9
