"""Integers: weights of 2 to 8 bits, activations of 4; the errors that they make of Gaussian numbers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bitexp.deploy.frozen import freeze
from bitexp.kernels import KERNELS
from bitexp.quant import BitLinear, set_backend
from bitexp.quant.activations.int4 import Int4
from bitexp.quant.options import LayerOptions
from bitexp.quant.spec import Part
from bitexp.quant.weights.int import Int

KERNEL_NAMES = [name for name in ("reference", "int8", "cpu") if not KERNELS.get(name).unavailable("cpu")]


def relative_error(weight: torch.Tensor, dequantized: torch.Tensor) -> float:
    return float((weight - dequantized).square().sum() / weight.square().sum())


@pytest.mark.parametrize(("bits", "error"), [(2, 0.515), (3, 0.0632), (4, 0.0116), (8, 3.5e-5)])
def test_the_error_on_gaussian_weights_in_blocks_of_64(bits: int, error: float) -> None:
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    quantizer = Int(weight, bits=bits, granularity="group", group_size=64)
    assert relative_error(weight, quantizer.quantize(weight).dequantized()) == pytest.approx(error, rel=0.03)


@given(st.integers(2, 8), st.integers(1, 5), st.integers(1, 9))
def test_the_largest_weight_has_the_highest_code_and_levels_are_symmetric(
    bits: int, outputs: int, inputs: int
) -> None:
    weight = torch.randn(outputs, inputs)
    codes, scale, _ = Int(weight, bits=bits).quantize(weight)
    high = 2 ** (bits - 1) - 1
    assert int(codes.abs().max()) == high
    assert (codes.abs().amax(-1) == high).all()
    error = (weight - codes * scale[:, None]).abs()
    assert (error <= scale[:, None] / 2 * (1 + 1e-4)).all()


@pytest.mark.parametrize("bits", [1, 9])
def test_other_bits_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"bits={bits} must be from 2 to 8"):
        LayerOptions(Part("int", {"bits": bits}))


def test_int4_activations_of_gaussian_numbers_are_as_sparse_as_the_paper_says() -> None:
    """BitNet a4.8 reports 12.0 to 12.1 % zeros (arXiv 2411.04965, table 2); by erf there are 11.99 %."""
    x = torch.randn(2000, 1024, generator=torch.Generator().manual_seed(0))
    codes, scale = Int4().codes(x, (-1,))
    zero = math.erf(0.5 * math.sqrt(2 / math.pi) / math.sqrt(7) / math.sqrt(2))
    assert float((codes == 0).float().mean()) == pytest.approx(zero, abs=0.001)
    assert zero == pytest.approx(0.1199, abs=1e-4)
    assert float((x > 7.5 * scale).float().mean()) == pytest.approx(0.0119, abs=0.001)
    assert float((x < -8.5 * scale).float().mean()) == pytest.approx(0.0052, abs=0.001)
    assert (int(codes.min()), int(codes.max())) == (-8, 7)


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_a_layer_with_int4_activations_passes_the_gradient_through_clipping(kernel: str) -> None:
    torch.manual_seed(0)
    layer = BitLinear(nn.Linear(32, 8), LayerOptions(Part("ternary_mean"), Part("int4"), norm="layer"))
    layer.set_backend(KERNELS.get(kernel).backend)
    x = (torch.randn(6, 32) ** 3).requires_grad_()  # long tails: some are clipped
    target = torch.randn(6, 8)
    (layer(x) * target).sum().backward()

    v, w, b = (t.detach().double().requires_grad_() for t in (x, layer.weight, layer.bias))
    normed = F.layer_norm(v, (32,))
    root = math.sqrt(7)
    beta = normed.abs().mean(-1, keepdim=True)
    clipped = (normed * root / beta).round().clamp(-8, 7) * beta / root
    assert (clipped - normed).abs().max() > beta.max() / root  # some are
    normed = normed + (clipped - normed).detach()
    latent = w + (layer.quantized().dequantized() - w).detach()
    (F.linear(normed, latent, b) * target.double()).sum().backward()
    for ours, theirs in ((x, v), (layer.weight, w), (layer.bias, b)):
        assert torch.allclose(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("activations", ["int8", "int4"])
def test_frozen_equals_evaluated_to_the_bit(kernel: str, bits: int, activations: str) -> None:
    torch.manual_seed(bits)
    options = LayerOptions(Part("int", {"bits": bits}), Part(activations), norm="layer")
    model = nn.Sequential(BitLinear(nn.Linear(2100, 6), options))  # sums of 8 x 8 bits leave 2^24
    x = torch.randn(5, 2100)
    set_backend(model, KERNELS.get(kernel).backend)
    expected = model.eval()(x)
    freeze(model, "auto", KERNELS.get(kernel))
    assert torch.equal(model(x), expected)
