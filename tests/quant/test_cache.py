"""Weights are quantized once per optimizer step, and anew whenever they may have changed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel

from bitexp.quant import Quantizer
from bitexp.quant.layers import BitLinear
from bitexp.quant.product import Quantized
from tests.support.quantizers import MakeQuantizer as Make


class Counted:
    """A layer, and how often its weights were quantized."""

    def __init__(self, quantizer: Quantizer) -> None:
        torch.manual_seed(0)
        self.times = 0
        self.layer = BitLinear(nn.Linear(64, 32), quantizer)
        part = self.layer.parts.weights
        quantize = part.quantize

        def count(weight: Tensor) -> Quantized:
            self.times += 1
            return quantize(weight)

        part.quantize = count  # type: ignore[method-assign]
        self.x = torch.randn(5, 64)

    def forward(self) -> Tensor:
        """The output, which must be that of a layer without a cache."""
        y = self.layer(self.x)
        times = self.times
        assert torch.equal(y, copy.deepcopy(self.layer).eval()(self.x))
        self.times = times
        return y


@pytest.fixture(params=["ternary_mean", "ternary_median", "binary"])
def counted(make_quantizer: Make, request: pytest.FixtureRequest) -> Counted:
    return Counted(make_quantizer(request.param))


def test_batches_of_one_step_share_the_codes(counted: Counted) -> None:
    optimizer = torch.optim.AdamW(counted.layer.parameters(), lr=0.1)
    for step in range(3):
        for _ in range(4):
            counted.forward().square().sum().backward()
        assert counted.times == step + 1
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
@pytest.mark.parametrize("how", [{}, {"foreach": True}, {"fused": True}])
def test_every_optimizer_is_noticed(
    counted: Counted, kind: type[torch.optim.Optimizer], how: dict[str, bool]
) -> None:
    if kind is torch.optim.RMSprop and "fused" in how:
        pytest.skip("torch has no fused RMSprop")
    optimizer = kind(counted.layer.parameters(), lr=0.1, **how)  # type: ignore[call-arg]
    before = counted.forward()
    before.square().sum().backward()
    optimizer.step()
    assert not torch.equal(counted.forward(), before)


class WritesToData(torch.optim.Optimizer):
    """One weight only, past the version counter."""

    def __init__(self, parameters: list[Tensor]) -> None:
        super().__init__(parameters, {})

    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["params"][0].data[3, 5] = 10.0


def test_an_optimizer_that_writes_to_data_is_noticed(counted: Counted) -> None:
    optimizer = WritesToData([counted.layer.weight])
    before = counted.forward()
    optimizer.step()
    assert not torch.equal(counted.forward(), before)


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
    counted = Counted(make_quantizer("lsq"))
    before = counted.forward().detach()
    counted.forward()
    assert counted.times == 1
    change(counted.layer, torch.randn(32, 64))
    assert not torch.equal(counted.forward(), before)
    counted.forward()
    assert counted.times == 2


def test_a_step_of_an_optimizer_that_has_only_the_learned_scales_is_noticed(make_quantizer: Make) -> None:
    counted = Counted(make_quantizer("lsq"))
    optimizer = torch.optim.SGD(counted.layer.parts.weights.parameters(), lr=0.1)
    before = counted.forward()
    before.square().sum().backward()
    optimizer.step()
    assert not torch.equal(counted.forward(), before)
    assert counted.times == 2


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_were_changed_are_quantized_anew(
    counted: Counted, change: Callable[[nn.Module, Tensor], None]
) -> None:
    before = counted.forward().detach()
    change(counted.layer, torch.randn(32, 64))
    assert not torch.equal(counted.forward(), before)
    assert not torch.equal(counted.forward(), before)
    assert counted.times == 2


def test_a_weight_that_is_passed_in_is_never_remembered(counted: Counted) -> None:
    for _ in range(3):  # each at the address of the one before
        other = {"weight": torch.randn(32, 64)}
        expected = functional_call(copy.deepcopy(counted.layer).eval(), other, (counted.x,))
        assert torch.equal(functional_call(counted.layer, other, (counted.x,)), expected)


def test_nothing_is_kept_in_evaluation_or_without_gradients(counted: Counted) -> None:
    with torch.no_grad():
        counted.forward()
        counted.forward()
    with torch.inference_mode():
        counted.forward()
    assert counted.times == 3
    counted.layer.eval()
    counted.forward()
    counted.forward()
    assert counted.times == 5


def test_weights_made_for_inference_are_refused_by_torch_as_ever(make_quantizer: Make) -> None:
    with torch.inference_mode():
        counted = Counted(make_quantizer("ternary_mean"))
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        counted.forward()


def test_a_backward_uses_the_codes_of_its_own_forward(counted: Counted) -> None:
    counted.x.requires_grad_()
    expected = torch.autograd.grad(counted.layer(counted.x).sum(), counted.x)[0]
    y = counted.layer(counted.x)
    with torch.no_grad():
        counted.layer.weight.normal_()
    counted.layer(counted.x)
    weight = counted.layer.weight
    assert not torch.equal(torch.autograd.grad(counted.layer(counted.x).sum(), counted.x)[0], expected)
    assert weight._version > 0
    assert torch.equal(torch.autograd.grad(y.sum(), counted.x)[0], expected)


def test_what_is_kept_is_neither_copied_nor_stored(counted: Counted) -> None:
    counted.forward()
    assert set(counted.layer.state_dict()) == {"weight", "bias"}
    assert copy.deepcopy(counted.layer.cache)._kept is None
    assert pickle.loads(pickle.dumps(counted.layer.cache))._kept is None
