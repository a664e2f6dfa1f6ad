"""What a norm has learned goes into the layers that take its place, or the conversion is refused."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from bitexp.quant import quantize
from bitexp.quant.convert import Conversion


class Network(nn.Module):
    """A norm before two linear layers, and an embedding that may be tied to one of them."""

    prenorm: ClassVar[dict[str, str]] = {"a": "norm", "b": "norm"}

    def __init__(self, norm: nn.Module, bias: bool = True, tied: bool = False) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(5, 8), norm
        self.a, self.b = nn.Linear(8, 5, bias=bias), nn.Linear(8, 5, bias=bias)
        if tied:
            self.embed.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.a(x) + self.b(x)


def changed(norm: nn.Module) -> Any:
    """The norm with other parameters than it begins with."""
    torch.manual_seed(0)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 1.0)
    return norm


def converted(network: nn.Module) -> Conversion:
    return quantize(network, "full_norm", exclude=["embed"])


@pytest.mark.parametrize("bias", [True, False])
def test_the_network_computes_what_it_computed(bias: bool) -> None:
    norm = changed(nn.LayerNorm(8, eps=1e-5, bias=bias))
    network, x = Network(norm, bias), torch.randn(6, 8)
    expected = network(x).detach()
    converted(network)
    assert isinstance(network.norm, nn.Identity)
    torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)


def test_a_norm_that_has_learned_nothing_leaves_all_bits() -> None:
    network = Network(nn.LayerNorm(8))
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    converted(network)
    assert all(torch.equal(parameter, before[name]) for name, parameter in network.named_parameters())


def test_learned_scales_begin_with_the_weights_as_they_are_then() -> None:
    network = Network(changed(nn.LayerNorm(8)))
    quantize(network, "lsq", exclude=["embed"])
    layer: Any = network.a
    step = 2 * layer.weight.detach().abs().mean(1) / 7**0.5
    torch.testing.assert_close(layer.parts.weights.step_size.detach(), step)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (lambda: Network(changed(nn.LayerNorm(8)), bias=False), "without a bias have no place"),
        (lambda: Network(changed(nn.RMSNorm(8)), tied=True), "tied to others have no place"),
    ],
)
def test_where_there_is_no_place_for_it_the_network_stays_as_it_was(network: Any, words: str) -> None:
    model = network()
    norm, weight = model.norm, model.a.weight.detach().clone()
    with pytest.raises(ValueError, match=words):
        converted(model)
    assert model.norm is norm
    assert torch.equal(model.a.weight, weight)


def test_a_network_without_numbers_is_converted() -> None:
    with torch.device("meta"):
        converted(Network(nn.LayerNorm(8)))
    with FakeTensorMode():
        converted(Network(nn.LayerNorm(8)))
