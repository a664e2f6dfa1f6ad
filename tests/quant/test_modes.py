"""What follows the operations of torch, and which memory may be read past it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from bitexp.quant import modes
from bitexp.quant.convolution import exact_conv
from bitexp.quant.sums import ordered_sum


def traced(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is old
        torch.jit.trace(function, (x,), check_trace=False)


def forward_mode(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TorchScript, which it loads
        torch.func.jvp(function, (x,), (x,))


def counted(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with FlopCounterMode(display=False):
        function(x)


FOLLOWING: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], object]] = {
    "vmap": lambda f, x: torch.vmap(f)(x),
    "grad": lambda f, x: torch.func.grad(lambda x: f(x).sum())(x),
    "jvp": forward_mode,
    "make_fx": lambda f, x: make_fx(f)(x),
    "trace": traced,
    "counter": counted,
    "compile": lambda f, x: torch.compile(f, backend="eager", fullgraph=True)(x),
}


@pytest.mark.parametrize("way", FOLLOWING)
def test_what_is_followed_is_not_read(way: str) -> None:
    seen: list[tuple[bool, bool]] = []

    def function(x: Tensor) -> Tensor:
        seen.append((modes.followed(), modes.readable(x)))
        return x * 2

    assert (modes.followed(), modes.readable(torch.ones(3))) == (False, True)
    FOLLOWING[way](function, torch.ones(3))
    assert seen
    assert set(seen) == {(True, False)}
    assert not modes.followed()


@pytest.mark.parametrize("way", FOLLOWING)
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * modes.in_memory(x),
        lambda x: ordered_sum(-1, x) + ordered_sum(-3, x, x),
        lambda x: exact_conv(x.round(), torch.ones(4, 3, 3, 3), ((1, 1), (1, 1), (1, 1), 1)),
    ],
    ids=["memory", "sum", "convolution"],
)
def test_what_layers_are_made_of_can_be_followed(function: Callable[[Tensor], Tensor], way: str) -> None:
    FOLLOWING[way](function, torch.randn(2, 3, 5, 70))


class Named(Tensor):
    """A tensor of another class."""


@pytest.mark.parametrize(
    ("x", "readable"),
    [
        (torch.ones(3), True),
        (nn.Parameter(torch.ones(3), requires_grad=False), True),
        (nn.Parameter(torch.ones(3)), False),
        (torch.ones(3, requires_grad=True), False),
        (torch.ones(3).as_subclass(Named), False),
    ],
    ids=["tensor", "frozen parameter", "parameter", "leaf", "subclass"],
)
def test_what_autograd_records_is_not_read_while_it_does(x: Tensor, readable: bool) -> None:
    assert modes.readable(x) == readable
    assert modes.recorded(x) == x.requires_grad
    with torch.no_grad():
        assert not modes.recorded(x)
        assert modes.readable(x) == (type(x) is not Named)


def test_what_is_in_memory() -> None:
    assert modes.in_memory(torch.ones(3))
    assert modes.in_memory(nn.Parameter(torch.ones(3)))
    assert not modes.in_memory(torch.ones(3).as_subclass(Named))
    assert not modes.in_memory(torch.ones(3).to_sparse())
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(torch.ones(3))
    assert not modes.in_memory(fake)
    assert not modes.readable(fake)
    batched: list[bool] = []
    torch.vmap(lambda x: batched.append(modes.batched(x)) or x)(torch.ones(3, 2))
    assert batched == [True]
    assert not modes.batched(torch.ones(3))


def test_without_autocast_there_is_nothing_to_switch_off() -> None:
    assert isinstance(modes.no_autocast(torch.ones(1)), contextlib.nullcontext)
    with torch.autocast("cpu", torch.bfloat16):
        assert modes.result_dtype(torch.ones(1)) == torch.bfloat16
        with modes.no_autocast(torch.ones(1)):
            assert modes.result_dtype(torch.ones(1)) == torch.float32
