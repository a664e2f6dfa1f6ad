"""Hadamard: the matrix, its inverse, exactly the same everywhere; and what it does to a layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hadamard_transform import hadamard_transform
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import hadamard as matrix
from torch import nn

from bitexp.deploy.frozen import freeze
from bitexp.kernels import KERNELS
from bitexp.quant import BitConv2d, BitLinear, set_backend
from bitexp.quant.options import LayerOptions
from bitexp.quant.spec import Part
from bitexp.quant.transforms import Hadamard, hadamard

KERNEL_NAMES = [name for name in ("reference", "int8", "cpu") if not KERNELS.get(name).unavailable("cpu")]


def options(activations: str = "int8", **changes: object) -> LayerOptions:
    return LayerOptions(Part("ternary_mean"), Part.of(activations), Part("hadamard", changes), norm="rms")


@given(st.integers(0, 8), st.integers(1, 5))
def test_it_is_the_matrix_of_scipy(power: int, rows: int) -> None:
    size = 2**power
    x = torch.randn(rows, size, dtype=torch.float64)
    expected = x @ torch.tensor(matrix(size), dtype=torch.float64) / size**0.5
    assert torch.allclose(hadamard(x, size), expected, atol=1e-12)


def test_it_has_the_bits_of_the_package_hadamard_transform() -> None:
    x = torch.randn(32, 256)
    assert torch.allclose(hadamard(x, 256), hadamard_transform(x), atol=1e-6)
    # theirs divides by the root of the size, ours multiplies with its inverse: the same for powers of four
    assert torch.equal(hadamard(x, 256), hadamard_transform(x))


def test_twice_is_the_identity() -> None:
    x = torch.randn(16, 128)
    assert torch.allclose(hadamard(hadamard(x, 128), 128), x, atol=1e-5)


@pytest.mark.parametrize(("size", "block"), [(192, 64), (96, 32), (7, 1), (64, 64), (10, 2)])
def test_blocks_are_the_largest_power_of_two_that_divides_the_features(size: int, block: int) -> None:
    x = torch.randn(3, size)
    expected = hadamard(x.reshape(3, -1, block), block).reshape(3, size)
    assert torch.equal(Hadamard()(x, -1), expected)


def test_channels_of_an_image_are_mapped_at_each_pixel() -> None:
    x = torch.randn(2, 16, 5, 4)
    expected = hadamard(x.movedim(1, -1), 16).movedim(-1, 1)
    assert torch.equal(Hadamard()(x, -3), expected)


def test_the_gradient_is_the_transform_of_the_gradient() -> None:
    x = torch.randn(4, 32, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: Hadamard()(v, -1), x)
    assert torch.autograd.gradgradcheck(lambda v: Hadamard()(v, -1), x)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block": 3}, "block=3 must be a power of two"),
        ({"applies_to": "weights"}, "should be 'activations'"),
    ],
)
def test_options_out_of_their_range_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        options(**changes)


def test_a_block_that_does_not_divide_the_features_is_told_by_the_first_forward() -> None:
    layer = BitLinear(nn.Linear(24, 4), options(block=16))
    with pytest.raises(ValueError, match="block=16 does not divide the 24 features"):
        layer(torch.randn(2, 24))


def test_rotating_both_sides_leaves_the_product_of_floats_what_it_was() -> None:
    linear = nn.Linear(64, 32)
    layer = BitLinear(linear, options(activations="none", applies_to="both"))
    layer.set_lambda(0.0)
    x = torch.randn(5, 64)
    expected = F.linear(F.rms_norm(x, (64,), eps=1e-5), linear.weight, linear.bias)
    assert torch.allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize("applies_to", ["activations", "both"])
@pytest.mark.parametrize("kernel", KERNEL_NAMES)
@pytest.mark.parametrize("activations", ["int8", "int4"])
def test_gradients_are_those_of_fp64_autograd(applies_to: str, kernel: str, activations: str) -> None:
    torch.manual_seed(0)
    layer = BitLinear(nn.Linear(32, 8), options(activations, applies_to=applies_to))
    layer.set_backend(KERNELS.get(kernel).backend)
    x, target = torch.randn(6, 32, requires_grad=True), torch.randn(6, 8)
    (layer(x) * target).sum().backward()

    v, w, b = (t.detach().double().requires_grad_() for t in (x, layer.weight, layer.bias))
    h = torch.tensor(matrix(32), dtype=torch.float64) / 32**0.5
    normed = F.rms_norm(v, (32,), eps=1e-5) @ h
    codes, scale = layer.parts.activations.codes(normed.detach().float(), (-1,))
    normed = normed + (codes * scale - normed).detach()
    latent = w @ h if applies_to == "both" else w
    latent = latent + (layer.quantized().dequantized() - latent).detach()
    (F.linear(normed, latent, b) * target.double()).sum().backward()
    for ours, theirs in ((x, v), (layer.weight, w), (layer.bias, b)):
        assert torch.allclose(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
@pytest.mark.parametrize("make", ["linear", "convolution"])
@pytest.mark.parametrize("activations", ["int8", "int4"])
@pytest.mark.parametrize("applies_to", ["activations", "both"])
def test_frozen_equals_evaluated_to_the_bit(
    kernel: str, make: str, activations: str, applies_to: str
) -> None:
    torch.manual_seed(1)
    chosen = options(activations, applies_to=applies_to)
    linear = make == "linear"
    conv = nn.Conv2d(8, 4, 3, padding=1)
    layer = BitLinear(nn.Linear(96, 12), chosen) if linear else BitConv2d(conv, chosen)
    x = torch.randn(7, 96) if linear else torch.randn(3, 8, 6, 6)
    model = nn.Sequential(layer)
    set_backend(model, KERNELS.get(kernel).backend)
    expected = model.eval()(x)
    freeze(model, "auto", KERNELS.get(kernel))
    assert torch.equal(model(x), expected)
