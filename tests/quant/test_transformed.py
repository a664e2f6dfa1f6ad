"""Layers that are compiled, mapped by vmap, and called with other parameters."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, vmap
from torch.testing import assert_close

from bitexp.quant.backend import Backend
from tests.support.layers import (
    BACKENDS,
    small,
)  # fmt: skip
from tests.support.quantizers import MakeQuantizer as Make


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def dynamo() -> Iterator[None]:
    """A compiler without what other tests left in its caches."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


INSTANTIATES = "ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"


@pytest.mark.usefixtures("dynamo")
@pytest.mark.filterwarnings(INSTANTIATES)  # torch 2.13: Dynamo does so itself
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_a_layer_is_traced_as_one_graph_with_the_same_bits(
    make_quantizer: Make, norm: str, backend: Backend
) -> None:
    layer, x = small(make_quantizer("ternary_mean", norm=norm), conv=False)
    layer.set_backend(backend)
    before = x.detach().clone()
    traced = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y, expected = traced(x), layer(x)
    assert torch.equal(y, expected)
    leaves = [x, layer.weight, layer.bias]
    theirs = torch.autograd.grad(expected.square().sum(), leaves)
    for a, e in zip(torch.autograd.grad(y.square().sum(), leaves), theirs, strict=True):
        assert torch.equal(a, e)
    assert torch.equal(x, before)


@pytest.mark.usefixtures("dynamo")
@pytest.mark.filterwarnings(INSTANTIATES)
def test_what_changes_in_time_is_no_reason_to_compile_again(make_quantizer: Make) -> None:
    layer, x = small(make_quantizer("sherry"), conv=False)
    graphs = CompileCounterWithBackend("aot_eager")
    traced = torch.compile(layer, fullgraph=True, backend=graphs)
    for share in (0.01, 0.02, 0.3, 0.7):
        layer.set_progress(share)
        assert torch.equal(traced(x), layer(x))
    assert graphs.frame_count == 1


@pytest.mark.slow
@pytest.mark.usefixtures("dynamo")
@pytest.mark.filterwarnings(INSTANTIATES)
def test_a_compiled_layer_computes_the_same_but_for_fused_roundings(make_quantizer: Make) -> None:
    layer, x = small(make_quantizer("ternary_mean"), conv=False)
    compiled = torch.compile(layer, fullgraph=True)
    y, expected = compiled(x), layer(x)
    assert_close(y, expected, rtol=1e-5, atol=1e-6)
    leaves = [x, layer.weight, layer.bias]
    theirs = torch.autograd.grad(expected.square().sum(), leaves)
    for a, e in zip(torch.autograd.grad(y.square().sum(), leaves), theirs, strict=True):
        assert_close(a, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sample", [(40,), (3, 40), (4, 7, 7)])
@pytest.mark.parametrize("name", ["binary", "ternary_mean", "ternary_median"])
def test_gradients_per_sample_by_vmap_equal_those_of_a_loop(
    make_quantizer: Make, name: str, sample: tuple[int, ...], backend: Backend
) -> None:
    conv = len(sample) == 3
    layer, _ = small(make_quantizer(name, activations={"qmax": 128}), conv)
    layer.set_backend(backend)
    x = torch.randn(5, *sample)
    parameters = dict(layer.named_parameters())

    def loss(values: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(layer, values, (one,)).square().sum()

    batched = vmap(grad(loss), (None, 0))(parameters, x)
    for i, one in enumerate(x):
        layer.zero_grad()
        layer(one).square().sum().backward()
        for key, parameter in parameters.items():
            assert parameter.grad is not None
            assert_close(batched[key][i], parameter.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["binary", "ternary_mean", "ternary_median"])
def test_an_ensemble_by_vmap_equals_its_members(make_quantizer: Make, name: str, backend: Backend) -> None:
    layer, x = small(make_quantizer(name), conv=False)
    layer.set_backend(backend)
    members = [{key: torch.randn_like(p) for key, p in layer.named_parameters()} for _ in range(3)]
    stacked = {key: torch.stack([m[key] for m in members]) for key in members[0]}
    outputs = vmap(lambda values: functional_call(layer, values, (x.detach(),)))(stacked)
    for member, output in zip(members, outputs, strict=True):
        assert_close(output, functional_call(layer, member, (x,)), rtol=1e-6, atol=1e-6)


def test_functional_call_uses_the_given_parameters(make_quantizer: Make) -> None:
    layer, x = small(make_quantizer("ternary_mean"), conv=False)
    values = {key: torch.randn_like(p).requires_grad_() for key, p in layer.named_parameters()}
    y = functional_call(layer, values, (x,))
    other = copy.deepcopy(layer)
    other.load_state_dict(values)
    assert torch.equal(y, other(x))
    y.sum().backward()
    assert layer.weight.grad is None
    assert values["weight"].grad is not None
