"""Weights with a constant beside codes times scale: the same bits frozen, and the textbook's gradients."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from bitexp.deploy.frozen import FrozenLayer, freeze_layer
from bitexp.deploy.packed_file import load_packed
from bitexp.kernels import KERNELS
from bitexp.quant import WEIGHTS, Quantizer, WeightQuantizer
from bitexp.quant.backend import TORCH
from bitexp.quant.layers import BitConv2d, BitLinear, QuantizedLayer
from bitexp.quant.levels import BINARY
from bitexp.quant.product import Quantized
from tests.support.kernels import every_kernel
from tests.support.layers import CONVS, NORMS, assert_equals_textbook
from tests.support.packed_files import REFERENCE, describe, write


class Shifted(WeightQuantizer):
    """Signs around the mean, and the mean itself as the shift."""

    levels = BINARY
    has_shift = True

    def scale(self, rows: Tensor) -> Tensor:
        return (rows - rows.mean(-1, keepdim=True)).abs().mean(-1, keepdim=True)

    def codes(self, rows: Tensor, scale: Tensor) -> Tensor:
        return torch.where(rows > rows.mean(-1, keepdim=True), 1.0, -1.0)

    def shift(self, rows: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        mean = rows.mean(-1)
        return mean[0] if self.granularity == "tensor" else mean


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """`weights: shifted`, for the test alone."""
    monkeypatch.setitem(WEIGHTS._entries, "shifted", Shifted)
    torch.manual_seed(0)


VARIANTS: dict[str, dict[str, Any]] = {
    "per tensor": {"weights": {"name": "shifted", "granularity": "tensor"}},
    "per channel": {"weights": {"name": "shifted", "granularity": "channel"}},
    "128 levels, scaled bias": {"activations": {"name": "int8", "qmax": 128}, "bias": "scaled"},
    "int4 activations": {"weights": {"name": "shifted", "granularity": "channel"}, "activations": "int4"},
    "float activations": {"activations": "none"},
    "rotated": {"transform": {"name": "hadamard", "applies_to": "both", "block": None}},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def of(variant: str, norm: str = "none") -> Quantizer:
    section = {"weights": "shifted", "activations": "int8", "norm": norm}
    return Quantizer.of({**section, **VARIANTS[variant]})


def linear(variant: str, norm: str = "none") -> QuantizedLayer:
    layer = nn.Linear(40, 24)
    with torch.no_grad():
        layer.weight.add_(0.05)
    return BitLinear(layer, of(variant, norm))


def convolution(conv: str, variant: str, norm: str = "none") -> QuantizedLayer:
    layer = nn.Conv2d(4, 8, **CONVS[conv])
    with torch.no_grad():
        layer.weight.add_(0.05)
    return BitConv2d(layer, of(variant, norm))


def assert_exact(layer: QuantizedLayer, x: Tensor, kernel: str) -> None:
    """Frozen for a kernel, and evaluated with its backend, as evaluated with torch's; no shift is lost."""
    with torch.no_grad():
        expected = layer.eval()(x)
        frozen = freeze_layer(layer, "auto", KERNELS.get(kernel))
        assert frozen.shift is not None
        assert torch.equal(frozen(x), expected)
        assert torch.equal(copy.deepcopy(frozen)(x), expected)
        layer.set_backend(KERNELS.get(kernel).backend)
        assert torch.equal(layer(x), expected)
        frozen.shift.zero_()
        frozen.use(frozen.kernel)
        assert not torch.equal(frozen(x), expected)


@every_kernel
@every_variant
@pytest.mark.parametrize("shape", [(40,), (9, 40), (2, 3, 40)])
def test_a_frozen_linear_gives_the_bits_of_evaluation(
    kernel: str, variant: str, shape: tuple[int, ...]
) -> None:
    assert_exact(linear(variant), torch.randn(shape) * 2 + 0.3, kernel)


@every_kernel
@every_variant
@pytest.mark.parametrize("conv", CONVS)
def test_a_frozen_convolution_gives_the_bits_of_evaluation(kernel: str, variant: str, conv: str) -> None:
    if variant == "rotated" and "groups" in CONVS[conv]:
        pytest.skip("a rotation of both sides would mix the groups")
    assert_exact(convolution(conv, variant), torch.randn(3, 4, 9, 8) * 2 + 0.3, kernel)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "rotated"])
def test_linear_gradients_are_those_of_float64(variant: str, norm: str) -> None:
    assert_equals_textbook(linear(variant, norm), torch.randn(7, 40) * 2 + 0.3)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "rotated"])
def test_convolution_gradients_are_those_of_float64(variant: str, conv: str, norm: str) -> None:
    assert_equals_textbook(convolution(conv, variant, norm), torch.randn(3, 4, 9, 8) * 2 + 0.3)


def test_a_rotation_of_both_sides_leaves_the_product_what_it_was() -> None:
    """Float activations by rotated weights are the inputs by the weights that were rotated back."""
    rotation = VARIANTS["rotated"]["transform"]
    layer = BitLinear(nn.Linear(40, 24), Quantizer.of({"weights": "shifted", "transform": rotation}))
    x = torch.randn(5, 40)
    rotate = functools.partial(layer.parts.transform, dim=-1)
    expected = F.linear(rotate(x).double(), layer.quantized().dequantized().double(), layer.bias.double())
    assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)
    back = rotate(layer.quantized().dequantized()).double()
    assert_close(layer(x).double(), F.linear(x.double(), back, layer.bias.double()), rtol=1e-5, atol=1e-5)


@every_kernel
@every_variant
def test_a_training_step_has_the_same_bits_with_every_backend(kernel: str, variant: str) -> None:
    layer, x = linear(variant, "layer"), torch.randn(6, 40, requires_grad=True)
    steps = []
    for backend in (TORCH, KERNELS.get(kernel).backend):
        layer.set_backend(backend)
        y = layer(x)
        steps.append([y, *torch.autograd.grad(y.square().sum(), [x, layer.weight, layer.bias])])
    for ours, theirs in zip(*steps, strict=True):
        assert torch.equal(ours, theirs)


class Learned(Shifted):
    """The same with a shift that is a parameter."""

    def __init__(self, weight: Tensor, **options: Any) -> None:
        super().__init__(weight, **options)
        self.offset = nn.Parameter(torch.full((), 0.25))

    def shift(self, rows: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        return self.offset

    def gradients(
        self, grad: Tensor, weight: Tensor, quantized: Quantized, *learned: Tensor
    ) -> tuple[Tensor, ...]:
        return grad, grad.sum()


def test_a_shift_may_be_learned_and_what_is_frozen_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WEIGHTS._entries, "learned", Learned)
    layer = BitLinear(nn.Linear(40, 24), Quantizer.of({"weights": "learned", "activations": "int8"}))
    x, offset = torch.randn(6, 40), layer.parts.weights.offset
    frozen = freeze_layer(layer, "auto", REFERENCE)
    before = layer(x)
    assert torch.equal(frozen(x), before)
    kept = before.detach().clone()
    before.sum().backward()
    grad_w = torch.ones(24, 6) @ dequantized_inputs(layer, x)
    assert offset.grad is not None
    assert_close(offset.grad, grad_w.sum(), rtol=1e-5, atol=1e-4)
    with torch.no_grad():
        offset.add_(1.0)
    assert torch.equal(frozen(x), kept)
    assert not torch.equal(layer(x), kept)
    assert not list(frozen.parameters())


def dequantized_inputs(layer: QuantizedLayer, x: Tensor) -> Tensor:
    assert layer.parts.activations is not None
    codes, scale = layer.parts.activations.codes(x, (-1,))
    return codes * scale


@every_variant
def test_lambda_1_is_where_the_mixing_ends(variant: str) -> None:
    layer, x = linear(variant), torch.randn(6, 40)
    expected = layer(x)
    layer.phasing = True
    assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_packed_file_keeps_the_shift(tmp_path: Path, model: str, granularity: str) -> None:
    path = tmp_path / "packed.safetensors"
    weights = {"name": "shifted", "granularity": granularity}
    _, x, expected = write(path, describe(model, "binary", weights=weights))
    loaded, _ = load_packed(path, REFERENCE)
    assert torch.equal(loaded(x), expected)
    layers = [module for module in loaded.modules() if isinstance(module, FrozenLayer)]
    assert layers
    assert all(layer.shift is not None and layer.shift.any() for layer in layers)
