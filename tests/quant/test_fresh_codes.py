"""Whoever changes weights, and past whatever: the next forward has their codes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel

from bitexp.quant import Quantizer
from bitexp.quant.layers import BitConv2d, BitLinear
from tests.support.quantizers import MakeQuantizer as Make


class Layer:
    """A layer in training, whose output is that of a fresh copy in evaluation."""

    def __init__(self, quantizer: Quantizer) -> None:
        torch.manual_seed(0)
        self.layer = BitLinear(nn.Linear(64, 32), quantizer)
        self.x = torch.randn(5, 64)

    def forward(self) -> Tensor:
        """The output."""
        y = self.layer(self.x)
        assert torch.equal(y, copy.deepcopy(self.layer).eval()(self.x))
        return y


@pytest.fixture(params=["ternary_mean", "ternary_median", "binary"])
def trained(make_quantizer: Make, request: pytest.FixtureRequest) -> Layer:
    return Layer(make_quantizer(request.param))


def test_every_batch_of_a_step_has_the_codes_of_the_step(trained: Layer) -> None:
    optimizer = torch.optim.AdamW(trained.layer.parameters(), lr=0.1)
    for _ in range(3):
        for _ in range(4):
            trained.forward().square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("size", [8, 64, 400])
def test_a_row_that_was_set_through_data_is_seen_wherever_it_lies(make_quantizer: Make, size: int) -> None:
    layer = BitLinear(nn.Linear(size, size), make_quantizer("ternary_mean", norm="none", bias="plain"))
    x = torch.ones(1, size)
    for row in range(0, size, max(1, size // 16)):
        before = layer(x).detach()
        layer.weight.data[row] = 10.0
        assert not torch.equal(layer(x), before)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_a_loop_by_hand_trains_convolutions_in_any_memory_format(
    make_quantizer: Make, memory: torch.memory_format
) -> None:
    torch.manual_seed(0)
    layer = BitConv2d(nn.Conv2d(8, 8, 3), make_quantizer("ternary_mean")).to(memory_format=memory)
    x = torch.randn(2, 8, 6, 6)
    for _ in range(3):
        y = layer(x)
        assert torch.equal(y, copy.deepcopy(layer).eval()(x))
        before = layer.quantized().codes
        layer.zero_grad()
        y.square().mean().backward()
        for parameter in layer.parameters():
            assert parameter.grad is not None
            parameter.data -= 2 * parameter.grad
        assert not torch.equal(layer.quantized().codes, before)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
@pytest.mark.parametrize("how", [{}, {"foreach": True}, {"fused": True}])
def test_every_optimizer_is_noticed(
    trained: Layer, kind: type[torch.optim.Optimizer], how: dict[str, bool]
) -> None:
    if kind is torch.optim.RMSprop and "fused" in how:
        pytest.skip("torch has no fused RMSprop")
    optimizer = kind(trained.layer.parameters(), lr=0.1, **how)  # type: ignore[call-arg]
    before = trained.forward()
    before.square().sum().backward()
    optimizer.step()
    assert not torch.equal(trained.forward(), before)


class WritesToData(torch.optim.Optimizer):
    """One weight only, past the version counter."""

    def __init__(self, parameters: list[Tensor]) -> None:
        super().__init__(parameters, {})

    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["params"][0].data[3, 5] = 10.0


def test_an_optimizer_that_writes_to_data_is_noticed(trained: Layer) -> None:
    optimizer = WritesToData([trained.layer.weight])
    before = trained.forward()
    optimizer.step()
    assert not torch.equal(trained.forward(), before)


@torch.no_grad()
def in_place(layer: nn.Module, other: Tensor) -> None:
    layer.weight[3, 5] = 10.0


@torch.no_grad()
def copied(layer: nn.Module, other: Tensor) -> None:
    layer.weight.copy_(other)


def data_in_place(layer: nn.Module, other: Tensor) -> None:
    layer.weight.data.copy_(other)


def data_replaced(layer: nn.Module, other: Tensor) -> None:
    layer.weight.data = other


def loaded(layer: nn.Module, other: Tensor) -> None:
    layer.load_state_dict({**layer.state_dict(), "weight": other})


def assigned(layer: nn.Module, other: Tensor) -> None:
    layer.load_state_dict({**layer.state_dict(), "weight": nn.Parameter(other)}, assign=True)


def replaced(layer: nn.Module, other: Tensor) -> None:
    layer.weight = nn.Parameter(other)


def swapped(layer: nn.Module, other: Tensor) -> None:
    torch.utils.swap_tensors(layer.weight, nn.Parameter(other))


def initialized(layer: nn.Module, other: Tensor) -> None:
    nn.init.xavier_normal_(layer.weight)


def averaged(layer: nn.Module, other: Tensor) -> None:
    """What Lightning's weight averaging does around a validation, and does not undo here."""
    average = AveragedModel(layer)
    average.module.weight.data.copy_(other)
    layer.eval()
    kept = average.module.weight.data.clone()
    average.module.weight.data.copy_(layer.weight.data)
    layer.weight.data.copy_(kept)
    layer.train()


CHANGES = [
    in_place, copied, data_in_place, data_replaced, loaded, assigned, replaced, swapped, initialized,
    averaged,
]  # fmt: skip


@torch.no_grad()
def learned_in_place(layer: nn.Module, other: Tensor) -> None:
    layer.parts.weights.step_size.mul_(1.5)


def learned_loaded(layer: nn.Module, other: Tensor) -> None:
    state = layer.state_dict()
    layer.load_state_dict({**state, "parts.weights.step_size": state["parts.weights.step_size"] * 1.5})


@pytest.mark.parametrize("change", [in_place, replaced, learned_in_place, learned_loaded])
def test_learned_scales_that_were_changed_count_like_weights(
    make_quantizer: Make, change: Callable[[nn.Module, Tensor], None]
) -> None:
    trained = Layer(make_quantizer("lsq"))
    before = trained.forward().detach()
    trained.forward()
    change(trained.layer, torch.randn(32, 64))
    assert not torch.equal(trained.forward(), before)
    trained.forward()


def test_a_step_of_an_optimizer_that_has_only_the_learned_scales_is_noticed(make_quantizer: Make) -> None:
    trained = Layer(make_quantizer("lsq"))
    optimizer = torch.optim.SGD(trained.layer.parts.weights.parameters(), lr=0.1)
    before = trained.forward()
    before.square().sum().backward()
    optimizer.step()
    assert not torch.equal(trained.forward(), before)


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_were_changed_are_seen(
    trained: Layer, change: Callable[[nn.Module, Tensor], None]
) -> None:
    before = trained.forward().detach()
    change(trained.layer, torch.randn(32, 64))
    assert not torch.equal(trained.forward(), before)
    assert not torch.equal(trained.forward(), before)


def test_a_weight_that_is_passed_in_counts(trained: Layer) -> None:
    for _ in range(3):  # each at the address of the one before
        other = {"weight": torch.randn(32, 64)}
        expected = functional_call(copy.deepcopy(trained.layer).eval(), other, (trained.x,))
        assert torch.equal(functional_call(trained.layer, other, (trained.x,)), expected)


def test_weights_made_for_inference_are_refused_by_torch_as_ever(make_quantizer: Make) -> None:
    with torch.inference_mode():
        trained = Layer(make_quantizer("ternary_mean"))
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        trained.forward()


def test_a_backward_uses_the_codes_of_its_own_forward(trained: Layer) -> None:
    trained.x.requires_grad_()
    expected = torch.autograd.grad(trained.layer(trained.x).sum(), trained.x)[0]
    y = trained.layer(trained.x)
    with torch.no_grad():
        trained.layer.weight.normal_()
    trained.layer(trained.x)
    weight = trained.layer.weight
    assert not torch.equal(torch.autograd.grad(trained.layer(trained.x).sum(), trained.x)[0], expected)
    assert weight._version > 0
    assert torch.equal(torch.autograd.grad(y.sum(), trained.x)[0], expected)
