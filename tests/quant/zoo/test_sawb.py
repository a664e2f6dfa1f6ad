"""SAWB: its authors' code, and that its clip is about the best."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitexp.quant import WEIGHTS
from bitexp.quant.levels import Levels


def authors(weight: Tensor, bits: int, c1: float, c2: float) -> tuple[Tensor, Tensor]:
    """`SAWBSTE` of fms-model-optimizer 0.8.7: the quantized weights, and where the gradient passes."""
    clip = c1 * weight.square().mean().sqrt() - c2 * weight.abs().mean()
    levels = 2**bits - 1
    unit = (weight / clip).clamp(-1, 1) / 2 + 0.5
    return (2 * (unit * levels).round() / levels - 1) * clip, weight.abs() <= clip


@pytest.mark.parametrize(
    ("bits", "c1", "c2"), [(2, 3.12, 2.064), (3, 7.509, 6.892), (4, 12.68, 12.8), (5, 17.74, 18.64)]
)
def test_values_and_gradients_are_those_of_the_authors_code(bits: int, c1: float, c2: float) -> None:
    weight, grad = torch.randn(2, 24, 40).unbind()
    part = WEIGHTS.get("sawb")(weight, bits=bits, granularity="tensor")
    quantized = part.quantize(weight)
    theirs, passes = authors(weight.double(), bits, c1, c2)
    torch.testing.assert_close(quantized.dequantized(), theirs.float(), rtol=1e-5, atol=1e-6)
    assert torch.equal(part.gradients(grad, weight, quantized)[0], grad * passes)
    assert part.levels == Levels.odd(bits)


@pytest.mark.parametrize("draw", ["normal", "laplace", "uniform"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_no_clip_is_much_better_for_the_usual_distributions(draw: str, bits: int) -> None:
    grid = (torch.arange(20_000) + 0.5) / 20_000
    weight = {
        "normal": torch.erfinv(2 * grid - 1) * 2**0.5,
        "laplace": -(grid - 0.5).sign() * (1 - 2 * (grid - 0.5).abs()).log(),
        "uniform": 2 * grid - 1,
    }[draw]
    part = WEIGHTS.get("sawb")(weight[None], bits=bits)
    ours = (part.quantize(weight[None]).dequantized()[0] - weight).square().mean()
    best = min(
        float((even(weight, float(clip), bits) - weight).square().mean())
        for clip in torch.linspace(0.2, 1, 60) * weight.abs().max()
    )
    assert ours < 1.12 * best


def even(weight: Tensor, clip: float, bits: int) -> Tensor:
    """Rounded to 2^bits even parts of [-clip, clip]."""
    top = 2**bits - 1
    return (2 * (((weight / clip).clamp(-1, 1) + 1) / 2 * top).round() / top - 1) * clip


def test_where_the_formula_gives_no_clip_the_largest_weight_is_one() -> None:
    weight = torch.tensor([[0.5, -0.5, 0.5]])  # 12.68 - 12.8 is below zero
    codes, scale, _ = WEIGHTS.get("sawb")(weight, bits=4).quantize(weight)
    assert codes.tolist() == [[15, -15, 15]]
    assert float(scale) == pytest.approx(0.5 / 15)


@pytest.mark.parametrize("bits", [1, 6, 8])
def test_other_bits_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="must be from 2 to 5"):
        WEIGHTS.get("sawb")(torch.ones(2, 2), bits=bits)
