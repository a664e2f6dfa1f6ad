"""Gradients of gradients: those of the textbook's straight-through form, in float64 by torch's autograd."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close

from bitexp.kernels import KERNELS
from bitexp.quant.backend import Backend
from bitexp.quant.layers import BitConv2d, BitLinear, QuantizedLayer
from tests.support.kernels import AVAILABLE
from tests.support.layers import CONVS, LINEAR, NORMS, VARIANTS, norm_of_torch, straight_through, textbook
from tests.support.quantizers import MakeQuantizer as Make

BACKENDS = {name: KERNELS.get(name).backend for name in AVAILABLE}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]


def first_and_second(function: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """All gradients of a loss, and those of a penalty on them beside the loss."""
    y = function(*leaves)
    towards = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    loss = (y - towards).square().mean()
    first = torch.autograd.grad(loss, leaves, create_graph=True)
    penalty = loss + sum(g.square().sum() for g in first)
    return [*first, *torch.autograd.grad(penalty, leaves)]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, e in zip(ours, theirs, strict=True):
        assert_close(a.double(), e.double(), rtol=1e-3, atol=1e-4 * float(e.detach().abs().max()) + 1e-9)


def assert_equals_textbook(layer: QuantizedLayer, x: Tensor) -> None:
    names = [name for name, _ in layer.named_parameters()]

    def ours(x: Tensor, *values: Tensor) -> Tensor:
        return layer(x)

    leaves = [x.requires_grad_(), *layer.parameters()]
    doubled = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = first_and_second(lambda *given: textbook(layer, *given), doubled)
    assert all(float(e.detach().abs().max()) > 0 for e in expected)
    assert names == ["weight", "bias"]
    assert_same(first_and_second(ours, leaves), expected)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("variant", LINEAR)
def test_of_a_linear_layer(make_quantizer: Make, backend: Backend, variant: str, norm: str) -> None:
    layer = BitLinear(nn.Linear(48, 17), make_quantizer("ternary_mean", norm=norm, **LINEAR[variant]))
    layer.set_backend(backend)
    assert_equals_textbook(layer, torch.randn(2, 3, 48) * 2 + 0.3)


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("variant", ["plain", "scaled bias", "float activations", "binary"])
def test_of_a_convolution(make_quantizer: Make, variant: str, norm: str, conv: str) -> None:
    quantizer = make_quantizer("ternary_mean", norm=norm, **VARIANTS[variant])
    assert_equals_textbook(
        BitConv2d(nn.Conv2d(4, 8, **CONVS[conv]), quantizer), torch.randn(3, 4, 9, 8) + 0.3
    )


@pytest.mark.parametrize("value", [0.0, 0.4])
@pytest.mark.parametrize("norm", NORMS)
def test_below_lambda_1(make_quantizer: Make, norm: str, value: float) -> None:
    layer = BitLinear(nn.Linear(12, 8), make_quantizer("ternary_mean", norm=norm))
    layer.set_lambda(value)

    def mixed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        normed = norm_of_torch(x, norm, -1)
        codes, scale = layer.parts.activations.codes(normed.detach().float(), (-1,))
        quantized = layer.parts.weights.quantize(weight.detach()).dequantized().double()
        x_st = straight_through(normed, normed.detach() + value * (codes * scale - normed.detach()))
        w_st = straight_through(weight, weight.detach() + value * (quantized - weight.detach()))
        return F.linear(x_st, w_st, bias)

    leaves = [torch.randn(5, 12, requires_grad=True), *layer.parameters()]
    doubled = [leaf.detach().double().requires_grad_() for leaf in leaves]
    assert_same(first_and_second(lambda x, *_: layer(x), leaves), first_and_second(mixed, doubled))


def test_of_learned_scales(make_quantizer: Make, backend: Backend) -> None:
    layer = BitLinear(nn.Linear(12, 8), make_quantizer("lsq", weights={"bits": 2}))
    layer.set_backend(backend)
    part = layer.parts.weights
    low, high = part.levels.low, part.levels.high

    def lsq(x: Tensor, weight: Tensor, bias: Tensor, step_size: Tensor) -> Tensor:
        normed = norm_of_torch(x, "layer", -1)
        codes, scale = layer.parts.activations.codes(normed.detach().float(), (-1,))
        factor = 1 / math.sqrt(weight.numel() * high)
        s = (step_size * factor + (step_size - step_size * factor).detach())[:, None]
        clipped = (weight / s).clamp(low, high)
        return F.linear(
            straight_through(normed, codes * scale), straight_through(clipped, clipped.round()) * s, bias
        )

    leaves = [torch.randn(5, 12, requires_grad=True), *layer.parameters()]
    doubled = [leaf.detach().double().requires_grad_() for leaf in leaves]
    assert_same(first_and_second(lambda x, *_: layer(x), leaves), first_and_second(lsq, doubled))


def test_of_a_clipped_estimator_and_rotated_weights(make_quantizer: Make) -> None:
    rotation = {"name": "hadamard", "applies_to": "both"}
    layer = BitLinear(
        nn.Linear(16, 8),
        make_quantizer("ternary_mean", transform=rotation, estimator={"name": "clipped", "at": 0.3}),
    )

    def clipped(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        normed = layer.parts.transform(norm_of_torch(x, "layer", -1), -1)
        codes, scale = layer.parts.activations.codes(normed.detach().float(), (-1,))
        latent = layer.parts.transform(weight, -1)
        quantized = layer.parts.weights.quantize(latent.detach()).dequantized()
        passing = torch.where(latent.abs() <= 0.3, latent, latent.detach())
        return F.linear(straight_through(normed, codes * scale), straight_through(passing, quantized), bias)

    leaves = [torch.randn(5, 16, requires_grad=True), *layer.parameters()]
    doubled = [leaf.detach().double().requires_grad_() for leaf in leaves]
    assert_same(first_and_second(lambda x, *_: layer(x), leaves), first_and_second(clipped, doubled))


@pytest.mark.parametrize("norm", NORMS)
def test_of_a_network(make_quantizer: Make, backend: Backend, norm: str) -> None:
    quantizer = make_quantizer("ternary_mean", norm=norm)
    layers = [BitLinear(nn.Linear(12, 12), quantizer) for _ in range(2)]
    for layer in layers:
        layer.set_backend(backend)

    def ours(x: Tensor, *_: Tensor) -> Tensor:
        return layers[1](F.silu(layers[0](x)))

    def theirs(x: Tensor, w0: Tensor, b0: Tensor, w1: Tensor, b1: Tensor) -> Tensor:
        return textbook(layers[1], F.silu(textbook(layers[0], x, w0, b0)), w1, b1)

    leaves = [torch.randn(5, 12, requires_grad=True), *(p for layer in layers for p in layer.parameters())]
    doubled = [leaf.detach().double().requires_grad_() for leaf in leaves]
    assert_same(first_and_second(ours, leaves), first_and_second(theirs, doubled))


@pytest.mark.parametrize("norm", NORMS)
def test_of_torch_func(make_quantizer: Make, backend: Backend, norm: str) -> None:
    layer = BitLinear(nn.Linear(12, 8), make_quantizer("ternary_mean", norm=norm))
    layer.set_backend(backend)
    x = torch.randn(5, 12)
    weight, bias = layer.weight.detach(), layer.bias.detach()

    def penalty(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def loss(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return function(x, weight, bias).square().mean()

        return lambda *given: sum(g.square().sum() for g in torch.func.grad(loss, (0, 1))(*given))

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    second = torch.func.grad(penalty(ours), (0, 1, 2))(x, weight, bias)
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    loss = textbook(layer, *leaves).square().mean()
    first = torch.autograd.grad(loss, leaves[:2], create_graph=True)
    assert_same(list(second), list(torch.autograd.grad(sum(g.square().sum() for g in first), leaves)))


@pytest.mark.parametrize("norm", NORMS)
def test_first_order_is_the_same_with_and_without_a_graph(
    make_quantizer: Make, backend: Backend, norm: str
) -> None:
    layer = BitLinear(nn.Linear(12, 8), make_quantizer("ternary_mean", norm=norm))
    layer.set_backend(backend)
    leaves = [torch.randn(5, 12, requires_grad=True), *layer.parameters()]
    expected = torch.autograd.grad(layer(leaves[0]).square().sum(), leaves)
    found = torch.autograd.grad(layer(leaves[0]).square().sum(), leaves, create_graph=True)
    batched = torch.autograd.grad(
        layer(leaves[0]), leaves, 2 * layer(leaves[0]).detach()[None], is_grads_batched=True
    )
    assert_same(list(found), list(expected))
    assert_same([g[0] for g in batched], list(expected))


def test_weights_may_change_before_their_backward_with_a_graph(make_quantizer: Make) -> None:
    layer, x = (
        BitLinear(nn.Linear(12, 8), make_quantizer("ternary_mean")),
        torch.randn(5, 12, requires_grad=True),
    )
    expected = torch.autograd.grad(layer(x).sum(), x, create_graph=True)[0]
    y = layer(x)
    with torch.no_grad():
        layer.weight.normal_()
    assert torch.equal(torch.autograd.grad(y.sum(), x, create_graph=True)[0], expected)
