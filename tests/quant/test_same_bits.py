"""One command, one result: training, evaluation and the frozen layer have the same bits on every kernel."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bitexp.deploy.frozen import freeze_layer
from bitexp.kernels import KERNELS
from bitexp.quant import QUANTIZERS
from bitexp.quant.layers import BitConv2d, BitLinear, QuantizedLayer
from bitexp.quant.levels import Levels
from bitexp.quant.norms import normalize, normalize_backward
from bitexp.quant.parts import WeightQuantizer
from bitexp.quant.spec import EPS
from bitexp.quant.sums import ordered_means, ordered_sum, row_sums
from tests.support.kernels import AVAILABLE
from tests.support.layers import norm_of_torch
from tests.support.quantizers import MakeQuantizer as Make

PRESETS = [name for name, quantizer in QUANTIZERS.items() if quantizer.quantizes]
NORMS = ["none", "rms", "layer"]
THOROUGH = ("binary", "b158", "ternary_median", "lsq", "int")
CASES = [
    pytest.param(
        preset,
        norm,
        kind,
        dtype,
        marks=[pytest.mark.slow]
        * (preset not in THOROUGH and (norm != "layer" or kind == "small" or dtype != torch.float32)),
    )
    for preset in PRESETS
    for norm in NORMS
    for kind in ("small", "long", "conv")
    for dtype in (torch.float32, torch.bfloat16)
]
"""Of most presets what differs between them: linear and convolution, after a layer norm, in fp32."""


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def case(kind: str, quantizer: Any) -> tuple[QuantizedLayer, Tensor]:
    """A layer and an input; `long` has several parts of tokens, and a scale over many weights."""
    if kind == "conv":
        layer: QuantizedLayer = BitConv2d(nn.Conv2d(20, 6, 3, padding=1), quantizer)
        return layer, torch.randn(1, 20, 9, 8)
    if kind == "long":
        return BitLinear(nn.Linear(300, 120), quantizer), torch.randn(150, 300) * 2 + 0.3
    return BitLinear(nn.Linear(48, 70), quantizer), torch.randn(3, 7, 48) * 3 + 1


def results(layer: QuantizedLayer, x: Tensor, kernel: str, dtype: torch.dtype) -> tuple[list[Tensor], ...]:
    """Outputs in training, in evaluation and frozen, and all gradients, on a kernel."""
    layer = copy.deepcopy(layer)
    layer.set_backend(KERNELS.get(kernel).backend)
    leaf = x.clone().requires_grad_()
    torch.manual_seed(3)  # of codes that are drawn
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = layer(leaf)
        others = [layer.eval()(x), freeze_layer(layer, "auto", KERNELS.get(kernel))(x)]
    out_grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    torch.manual_seed(2)  # of gradients that are rounded at random
    return [y, *others], list(torch.autograd.grad(y, [leaf, *layer.parameters()], out_grad))


@pytest.mark.parametrize(("preset", "norm", "kind", "dtype"), CASES)
def test_training_evaluation_and_the_frozen_layer_are_one_on_every_kernel(
    make_quantizer: Make,
    monkeypatch: pytest.MonkeyPatch,
    preset: str,
    norm: str,
    kind: str,
    dtype: torch.dtype,
) -> None:
    monkeypatch.setattr("bitexp.quant.backward.PART", 2**14)  # several parts
    layer, x = case(kind, make_quantizer(preset, norm=norm))
    expected, expected_grads = results(layer, x, "reference", dtype)
    drawn = type(layer.parts.weights).sampled is not WeightQuantizer.sampled
    assert torch.equal(expected[0], expected[1]) or drawn
    assert torch.equal(expected[1], expected[2])
    for kernel in AVAILABLE:
        outputs, grads = results(layer, x, kernel, dtype)
        assert all(torch.equal(y, e) for y, e in zip(outputs, expected, strict=True)), kernel
        assert all(torch.equal(g, e) for g, e in zip(grads, expected_grads, strict=True)), kernel


MANY = [3, pytest.param(2, marks=pytest.mark.slow), pytest.param(7, marks=pytest.mark.slow)]
"""Numbers of threads; they take turns on fewer cores, which takes its time."""


@pytest.mark.parametrize("count", MANY)
@pytest.mark.parametrize("kind", ["long", "conv"])
@pytest.mark.parametrize("preset", ["binary", "lsq", "ternary_int4", "twn", "tequila", "quest"])
def test_the_number_of_threads_changes_no_output(
    make_quantizer: Make, monkeypatch: pytest.MonkeyPatch, preset: str, kind: str, count: int
) -> None:
    monkeypatch.setattr("bitexp.kernels.cpu.training.WORTH", 1)
    layer, x = case(kind, make_quantizer(preset))
    if kind == "conv":  # one sample of more numbers than torch sums in one thread
        x = torch.randn(1, 20, 41, 42)
    for kernel in AVAILABLE:
        layer.set_backend(KERNELS.get(kernel).backend)
        expected = layer(x)
        with threads(count):
            assert torch.equal(layer(x), expected), kernel


@pytest.mark.parametrize("function", ["weights", "learned"])
@pytest.mark.parametrize("count", MANY)
def test_a_sum_over_a_whole_tensor_is_one_in_any_number_of_threads(function: str, count: int) -> None:
    x = torch.randn(1, 150_001) if function == "weights" else torch.randn(3, 40_000)
    expected = row_sums(x)
    with threads(count):
        assert torch.equal(row_sums(x), expected)
    torch.testing.assert_close(expected, x.double().sum(-1, keepdim=True).float(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", [1, 5, 64, 100, 4096, 4097, 5000, 3 * 4096, 17 * 4096 + 70, 4096 * 4097])
def test_means_of_weights_and_their_signs_are_the_same_on_every_kernel(size: int) -> None:
    weights = torch.randn(1 if size > 2**20 else 3, size) * 0.7 + 0.01
    means, magnitudes = ordered_means(weights), ordered_means(weights.abs())
    torch.testing.assert_close(means, weights.double().mean(-1, keepdim=True).float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(magnitudes, weights.double().abs().mean(-1, keepdim=True).float())
    for kernel in AVAILABLE:
        backend = KERNELS.get(kernel).backend
        assert torch.equal(backend.means(weights), means), kernel
        assert torch.equal(backend.abs_means(weights), magnitudes), kernel
        assert torch.equal(backend.signs(weights, means), (weights > means) * 2 - 1), kernel
        scale, levels = magnitudes.clamp(min=EPS), Levels(-2, 1)
        for latents, shape in ((weights, scale.shape[:1]), (weights.reshape(-1, 1, size), scale.shape)):
            rounded = backend.rounded_by_means(latents, shape, levels)
            of_signs = backend.signs_by_means(latents, shape)
            expected = (weights * scale.reciprocal()).round().clamp(-2, 1)
            assert torch.equal(rounded[0], expected.view(latents.shape)), kernel
            assert torch.equal(of_signs[0], backend.signs(weights, means).view(latents.shape)), kernel
            for codes, of_rows in (rounded, of_signs):
                assert codes.dtype == torch.int8, kernel
                assert torch.equal(of_rows, scale.view(shape)), kernel


@given(size=st.integers(1, 200), dim=st.sampled_from([-1, -3]), seed=st.integers(0, 2**32 - 1))
def test_a_sum_in_order_is_the_sum(size: int, dim: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, y = (torch.randn(2, *((size, 3, 2) if dim == -3 else (3, 2, size))) for _ in range(2))
    for ours, theirs in (
        (ordered_sum(dim, x), x.double()),
        (ordered_sum(dim, x, y), x.double() * y.double()),
    ):
        expected = theirs.sum(dim, keepdim=True)
        torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)


@given(size=st.integers(1, 400), rows=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_sums_of_few_numbers_have_the_order_of_those_of_many(size: int, rows: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, y = torch.randn(2, rows, size)
    few = ordered_sum(-1, x, y)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bitexp.quant.sums.FEW", 0)
        assert torch.equal(ordered_sum(-1, x, y), few)


def test_the_order_of_a_sum_is_what_it_says() -> None:
    x = torch.randn(100)
    lanes = [x[i] + x[64 + i] if 64 + i < 100 else x[i] for i in range(64)]
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [a + b for a, b in zip(lanes[:half], lanes[half:], strict=True)]
    assert torch.equal(ordered_sum(-1, x), lanes[0][None])


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("dim", [-1, -3])
@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 300])
def test_norms_are_those_of_torch_up_to_rounding(size: int, dim: int, norm: Any) -> None:
    x = (3 * torch.randn(2, *((size, 3, 2) if dim == -3 else (3, 2, size))) + 1).requires_grad_()
    expected = norm_of_torch(x.double(), norm, dim)
    y, mean, rstd = normalize(x.detach(), norm, dim)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=2e-5)
    out_grad = torch.randn_like(y)
    assert rstd is not None
    (theirs,) = torch.autograd.grad(expected, x, out_grad.double())
    ours = normalize_backward(out_grad, x.detach(), mean, rstd, dim)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5 * float(rstd.max().clamp(min=1)))
