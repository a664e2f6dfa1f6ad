"""The presets against the packages whose layers they reproduce: PyPI bitlinear, and transformers."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import bitlinear
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from bitexp.quant.convert import quantize
from bitexp.quant.layers import BitLinear, set_lambda
from tests.support.quantizers import MakeQuantizer

SHAPES = [(7, 48), (3, 5, 48)]


@pytest.fixture
def eager() -> Iterator[None]:
    """transformers compiles its quantization functions; the arithmetic is that of eager mode."""
    with torch.compiler.set_stance("force_eager"):
        yield


def assert_same_step(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    """Forward, and the gradients of input, weight and bias, for one random output gradient."""
    x_ours, x_theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y_ours, y_theirs = ours(x_ours), theirs(x_theirs)
    assert_close(y_ours, y_theirs, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(y_ours)
    y_ours.backward(grad)
    y_theirs.backward(grad)
    assert x_ours.grad is not None
    assert x_ours.grad.abs().max() > 0.01
    assert_close(x_ours.grad, x_theirs.grad, rtol=1e-4, atol=1e-5)
    for (name, p), (_, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert p.grad is not None
        assert p.grad.abs().max() > 0.01
        assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("lambda_", [1.0, 0.3, 0.0])
@pytest.mark.parametrize(
    ("changed", "theirs_changed"), [({}, {}), ({"weights": "ternary_mean"}, {"weight_measure": "AbsMean"})]
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_reloaded_equals_bitlinear(
    make_quantizer: MakeQuantizer,
    shape: tuple[int, ...],
    bias: bool,
    changed: dict[str, object],
    theirs_changed: dict[str, str],
    lambda_: float,
) -> None:
    torch.manual_seed(0)
    theirs = bitlinear.BitLinear(48, 33, bias=bias, lambda_=lambda_, **theirs_changed)
    ours = BitLinear(copy.deepcopy(theirs), make_quantizer("reloaded", **changed))
    ours.set_lambda(lambda_)
    assert_same_step(ours, theirs, torch.randn(shape) * 3 + 0.5)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_b158_equals_autobitlinear_of_transformers(
    make_quantizer: MakeQuantizer, shape: tuple[int, ...], bias: bool
) -> None:
    from transformers.integrations.bitnet import AutoBitLinear

    torch.manual_seed(1)
    theirs = AutoBitLinear(48, 33, bias=bias, online_quant=True)
    ours = BitLinear(copy.deepcopy(theirs), make_quantizer("b158"))
    assert_same_step(ours, theirs, torch.randn(shape) * 3 + 0.5)


@pytest.mark.parametrize("lambda_", [1.0, 0.5])
def test_a_training_step_of_a_converted_model_equals_that_of_bitlinearize(
    make_quantizer: MakeQuantizer, lambda_: float
) -> None:
    torch.manual_seed(2)
    base = nn.Sequential(
        nn.Sequential(nn.Linear(20, 64), nn.GELU()),
        nn.Linear(64, 32, bias=False),
        nn.ReLU(),
        nn.Linear(32, 5),
    )
    ours, theirs = base, bitlinear.bitlinearize(copy.deepcopy(base))
    quantize(ours, make_quantizer("reloaded"), ["*"], [])
    set_lambda(ours, lambda_)
    bitlinear.set_lambda_(theirs, lambda_)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]

    x, labels = torch.randn(16, 20), torch.randint(5, (16,))
    losses = []
    for model in (ours, theirs):
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        losses.append(loss.detach())
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-6)
    for (name, p), (_, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        largest = p.grad.abs().max()
        assert largest > 0
        assert_close(p.grad / largest, q.grad / largest, rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
        assert_close(p, q, rtol=1e-5, atol=1e-6)
