"""EWGS with learned ends: its authors' formulas by autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bitexp.quant import ACTIVATIONS, WEIGHTS
from bitexp.quant.product import Quantized


class Discretizer(torch.autograd.Function):
    """`EWGS_discretizer` of the authors' code."""

    @staticmethod
    def forward(ctx: Any, unit: Tensor, steps: int, delta: float) -> Tensor:
        rounded = (unit * steps).round() / steps
        ctx.delta = delta
        ctx.save_for_backward(unit - rounded)
        return rounded

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (moved,) = ctx.saved_tensors
        return grad * (1 + ctx.delta * grad.sign() * moved), None, None


def discretized(x: Tensor, lower: Tensor, upper: Tensor, steps: int, delta: float) -> Tensor:
    return Discretizer.apply(((x - lower) / (upper - lower)).clamp(0, 1), steps, delta)  # type: ignore[no-any-return]


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize(("bits", "delta"), [(1, 0.0), (2, 0.001), (4, 0.3)])
def test_weights_are_those_of_the_authors(granularity: str, bits: int, delta: float) -> None:
    draw = torch.Generator().manual_seed(0)
    weight, grad = (torch.randn(8, 12, generator=draw) for _ in range(2))
    part = WEIGHTS.get("interval")(weight, bits=bits, delta=delta, granularity=granularity)
    with torch.no_grad():
        part.lower.mul_(0.4)  # some weights are beyond, on one side more than on the other
        part.upper.mul_(0.3)
    leaves = [t.detach().double().requires_grad_() for t in (weight, part.lower, part.upper, part.factor)]
    lower, upper, factor = (t.reshape(-1, 1) if granularity == "channel" else t for t in leaves[1:])
    theirs = factor * (2 * discretized(leaves[0], lower, upper, 2**bits - 1, delta) - 1)
    quantized = part.quantize(weight)
    assert_close(quantized.dequantized(), theirs.detach().float(), rtol=1e-5, atol=1e-6)
    theirs.backward(grad.double())
    ours = part.gradients(grad, weight, quantized, *(p.detach() for p in part.learned()))
    for found, leaf in zip(ours, leaves, strict=True):
        assert leaf.grad is not None
        assert_close(found.double(), leaf.grad, rtol=1e-4, atol=1e-5)
        assert found.any()


@pytest.mark.parametrize(("bits", "delta"), [(1, 0.0), (3, 0.2)])
def test_activations_are_those_of_the_authors(bits: int, delta: float) -> None:
    draw = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(16, 24, generator=draw) for _ in range(2))
    part = ACTIVATIONS.get("interval")(bits=bits, delta=delta)
    assert not part.calibrated
    part.calibrate(x)
    assert_close(part.lower.detach(), torch.maximum(x.min(), x.mean() - 3 * x.std(correction=0)))
    with torch.no_grad():
        part.lower.mul_(0.4)
        part.upper.mul_(0.3)
    leaves = [t.detach().double().requires_grad_() for t in (x, part.lower, part.upper)]
    theirs = discretized(*leaves, 2**bits - 1, delta)
    codes, scale = part.codes(x, (-1,))
    assert_close(codes * scale, theirs.detach().float(), rtol=1e-5, atol=1e-6)
    theirs.backward(grad.double())
    with torch.no_grad():
        ours = part.gradients(grad, x, Quantized(codes, scale), *part.learned())
    for found, leaf in zip(ours, leaves, strict=True):
        assert leaf.grad is not None
        assert_close(found.double(), leaf.grad, rtol=1e-4, atol=1e-5)
        assert found.any()


@pytest.mark.parametrize(
    ("options", "said"), [({"bits": 0}, "must be from 1 to 7"), ({"delta": -1.0}, "must not be negative")]
)
def test_options_out_of_range_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        WEIGHTS.get("interval")(torch.ones(2, 2), **options)
    with pytest.raises(ValueError, match=said):
        ACTIVATIONS.get("interval")(**options)
