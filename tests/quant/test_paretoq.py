"""ParetoQ's quantizers below three bits against its own classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from bitexp.kernels import KERNELS
from bitexp.quant import BitLinear
from bitexp.quant.options import LayerOptions
from bitexp.quant.spec import Part
from bitexp.quant.weights.paretoq import Seq
from tests.support.kernels import AVAILABLE
from tests.support.pareto import pareto

CASES: dict[str, tuple[Part, int, str]] = {
    "1 bit": (Part("elastic_binary"), 1, "LsqBinaryTernaryExtension"),
    "1.58 bits": (Part("seq", {"bits": 1.58}), 0, "StretchedElasticQuant"),
    "2 bits": (Part("seq", {"bits": 2}), 2, "StretchedElasticQuant"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kernel", AVAILABLE)
@pytest.mark.parametrize("shrunk", [1.0, 0.6])
def test_weights_and_gradients_are_those_of_the_authors(case: str, kernel: str, shrunk: float) -> None:
    part, bits, theirs = CASES[case]
    torch.manual_seed(bits)
    layer = BitLinear(nn.Linear(32, 16, bias=False), LayerOptions(part))
    layer.set_backend(KERNELS.get(kernel).backend)
    alpha = layer.parts.weights.alpha
    with torch.no_grad():
        alpha.mul_(shrunk)
    x, target = torch.randn(5, 32), torch.randn(5, 16)
    (layer(x) * target).sum().backward()

    weight = layer.weight.detach().clone().requires_grad_()
    of_rows = alpha.detach().clone()[:, None].requires_grad_()
    quantized = getattr(pareto(), theirs).apply(weight, of_rows, bits, False)
    (F.linear(x, quantized) * target).sum().backward()
    assert_close(layer.quantized().dequantized(), quantized.detach(), rtol=0, atol=2e-7)
    assert_close(layer.weight.grad, weight.grad, rtol=0, atol=1e-6)
    assert_close(alpha.grad, of_rows.grad[:, 0], rtol=1e-5, atol=1e-6)


def test_alpha_begins_with_the_largest_weight_of_a_row_or_for_signs_with_the_mean() -> None:
    layer = nn.Linear(40, 6)
    rows = layer.weight.detach().abs()
    for part, expected in (("seq", rows.amax(-1)), ("elastic_binary", rows.mean(-1))):
        torch.testing.assert_close(BitLinear(layer, LayerOptions(Part(part))).parts.weights.alpha, expected)
        whole = BitLinear(layer, LayerOptions(Part(part, {"granularity": "tensor"}))).parts.weights
        assert whole.alpha.shape == ()


def test_at_the_start_two_fifths_of_gaussian_weights_are_beyond_the_range_of_elastic_signs() -> None:
    """|w| > mean|w| for 42.5 % of them: they do not move until alpha grows."""
    weight = torch.randn(400, 1000, generator=torch.Generator().manual_seed(0))
    part = LayerOptions(Part("elastic_binary")).parts(weight).weights
    (of_weight, _) = part.gradients(torch.ones_like(weight), weight, part.quantize(weight), *part.learned())
    assert float((of_weight == 0).float().mean()) == pytest.approx(0.425, abs=0.002)


def test_codes_of_two_bits_are_odd_and_halve_the_range_evenly() -> None:
    ratios = torch.tensor([[-1.0, -0.51, -0.49, -0.01, 0.01, 0.49, 0.51, 1.0]])
    assert Seq(ratios, bits=2).quantize(ratios).codes.tolist() == [[-3, -3, -1, -1, 1, 1, 3, 3]]
    thirds = torch.tensor([[-1.0, -0.34, -0.33, 0.0, 0.33, 0.34, 1.0]])
    assert Seq(thirds, bits=1.58).quantize(thirds).codes.tolist() == [[-1, -1, 0, 0, 0, 1, 1]]


@pytest.mark.parametrize("bits", [1, 3, 1.5])
def test_other_bits_are_refused(bits: Any) -> None:
    with pytest.raises(ValueError, match=r"bits=.* must be 1\.58 or 2"):
        LayerOptions(Part("seq", {"bits": bits}))


@pytest.mark.parametrize("name", ["elastic_binary", "seq"])
def test_a_range_that_training_drives_below_zero_is_held_at_the_floor(name: str) -> None:
    weight: Tensor = torch.randn(3, 8)
    part = LayerOptions(Part(name)).parts(weight).weights
    with torch.no_grad():
        part.alpha.fill_(-1.0)
    assert bool((part.quantize(weight).scale > 0).all())
    assert all(g.isfinite().all() for g in part.gradients(weight, weight, part.quantize(weight), part.alpha))
