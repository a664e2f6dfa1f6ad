"""What the compiled kernel does not compute: torch computes it, torch sees it, or it is refused."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from bitexp.kernels.cpu import Cpu, Packed
from bitexp.quant.levels import BINARY
from bitexp.quant.product import Quantized
from bitexp.quant.spec import ActivationSpec, LayerSpec, Part
from tests.support.cpu_kernel import REFERENCE, case
from tests.support.specs import spec_for


@pytest.mark.parametrize(
    ("shape", "bias", "said"),
    [
        ((3, 41), None, r"\[3, 41\] do not end in 40 features"),
        ((), None, r"\[\] do not end in 40"),
        ((3, 40), 23, r"a bias of shape \[23\] does not fit 24 outputs"),
        ((3, 40), 1, r"a bias of shape \[1\] does not fit 24 outputs"),
    ],
)
def test_a_wrong_shape_is_refused(shape: tuple[int, ...], bias: int | None, said: str) -> None:
    kernel = Cpu()
    prepared = kernel.prepare(torch.ones(24, 40, dtype=torch.int8), torch.tensor(1.0))
    added = None if bias is None else torch.zeros(bias)
    for x in (torch.zeros(shape), torch.zeros(shape, dtype=torch.bfloat16)):  # compiled, and not
        with pytest.raises(ValueError, match=said):
            kernel.forward(x, prepared, added)


def test_steps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a scale of shape \[3\] does not fit 24 outputs"):
        Cpu().prepare(torch.ones(24, 40, dtype=torch.int8), torch.ones(3))


WIDE = torch.arange(-100, 100, dtype=torch.int8).reshape(10, 20)
TERNARY = (WIDE % 3 - 1).to(torch.int8)


@pytest.mark.parametrize("codes", [TERNARY, WIDE])
@pytest.mark.parametrize("qmax", [0, 127])
def test_what_is_not_compiled_is_computed_all_the_same(codes: Tensor, qmax: int) -> None:
    """Float activations, wide codes, steps per group, gradients, other dtypes, transforms."""
    kernel, steps, x = Cpu(), torch.tensor(0.3), torch.randn(4, 20)
    prepared = kernel.prepare(codes, steps)
    assert isinstance(prepared, Packed) == (codes is TERNARY)
    ours = functools.partial(kernel.forward, prepared=prepared, spec=spec_for(qmax))
    theirs = functools.partial(REFERENCE.forward, prepared=Quantized(codes, steps), spec=spec_for(qmax))
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(torch.vmap(ours)(x[:, None]), torch.vmap(theirs)(x[:, None]))
    grads = []
    for function in (ours, theirs):
        leaf = x.clone().requires_grad_()
        function(leaf).sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)
    groups = torch.rand(10, 2)
    grouped = kernel.forward(x, kernel.prepare(codes, groups), None, spec_for(qmax))
    assert torch.equal(grouped, REFERENCE.forward(x, Quantized(codes, groups), None, spec_for(qmax)))


class Function(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.forward = function


SIGNS = LayerSpec(shape=(70, 20), activations=ActivationSpec(Part("sign"), BINARY), levels=BINARY)
"""Of a layer that multiplies signs by signs, which are counted."""


def traced(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is old, and shapes are fixed in a trace
        program: Callable[[Tensor], Tensor] = torch.jit.trace(function, (x,), check_trace=False)
    return program


def faked(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert function(mode.from_tensor(x)).shape == (3, 70)
    return function  # which has kept nothing of it


FOLLOWED: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "trace": traced,
    "make_fx": lambda function, x: make_fx(function)(x),
    "compile": lambda function, x: torch.compile(function, backend="eager", fullgraph=True),
    "export": lambda function, x: torch.export.export(Function(function), (x,), strict=False).module(),
    "vmap": lambda function, x: torch.vmap(function),
    "fake": faked,
}


@pytest.mark.parametrize("kind", ["ternary", "binary", "signs"])
@pytest.mark.parametrize("way", FOLLOWED)
def test_what_follows_the_operations_of_torch_sees_them(way: str, kind: str) -> None:
    """A product past torch would be missing there. The kernel has multiplied nothing before."""
    x, codes, steps, bias = case("binary" if kind == "signs" else kind, 3, 20, 70, True, True)
    kernel, other = Cpu(), torch.randn(3, 20)

    def network() -> Callable[[Tensor], Tensor]:
        prepared = kernel.prepare(codes, steps)
        if kind != "signs":
            return lambda x: kernel.forward(x, prepared, bias)
        scale = torch.ones(3, 1)

        def product(x: Tensor) -> Tensor:
            signs, one = (x > 0).to(torch.int8) * 2 - 1, scale[0] if x.dim() == 1 else scale
            return kernel.forward_codes(signs, one, prepared, bias, SIGNS)

        return product

    torch._dynamo.reset()
    assert torch.equal(FOLLOWED[way](network(), x)(other), network()(other))


def test_derivatives_by_transforms_are_those_of_the_graph() -> None:
    x, codes, steps, bias = case("ternary", 3, 20, 70, True, True)
    prepared = Cpu().prepare(codes, steps)
    leaf = x.clone().requires_grad_()
    Cpu().forward(leaf, prepared, bias).sum().backward()
    assert torch.equal(torch.func.grad(lambda x: Cpu().forward(x, prepared, bias).sum())(x), leaf.grad)
