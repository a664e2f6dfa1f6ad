"""Estimators: the gradient through rounding, where a weight quantizer has none of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bitexp.kernels import KERNELS
from bitexp.quant import BitLinear, quantize
from bitexp.quant.options import LayerOptions
from bitexp.quant.spec import Part

KERNEL_NAMES = [name for name in ("reference", "int8", "cpu") if not KERNELS.get(name).unavailable("cpu")]


def gradient(kernel: str, estimator: str, **options: float) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    chosen = LayerOptions(Part("binary"), Part("int8"), estimator=Part(estimator, options))
    layer = BitLinear(nn.Linear(16, 8), chosen)
    layer.set_backend(KERNELS.get(kernel).backend)
    layer.weight.data.mul_(8)
    (layer(torch.randn(4, 16)) * torch.randn(4, 8)).sum().backward()
    return layer.weight.grad, layer.weight.detach()


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
@pytest.mark.parametrize("at", [0.5, 1.0])
def test_clipped_is_the_identity_within_its_range_and_nothing_outside(kernel: str, at: float) -> None:
    identity, _ = gradient(kernel, "straight_through")
    clipped, weight = gradient(kernel, "clipped", at=at)
    inside = weight.abs() <= at
    assert 0 < inside.sum() < inside.numel()
    assert torch.equal(clipped, identity * inside)


def test_the_identity_leaves_the_weights_themselves_in_the_graph() -> None:
    layer = BitLinear(nn.Linear(4, 4), LayerOptions(Part("binary"), estimator=Part("straight_through")))
    names: set[str] = set()

    def walk(node: object) -> None:
        names.add(type(node).__name__)
        for below, _ in getattr(node, "next_functions", ()):
            if below is not None:
                walk(below)

    walk(layer(torch.randn(2, 4)).grad_fn)
    assert "QuantizedProductBackward" in names
    assert "CarrierBackward" not in names


def test_a_rule_beside_a_method_s_own_is_refused() -> None:
    with pytest.raises(ValueError, match="so estimator=clipped would do nothing"):
        LayerOptions(Part("lsq"), estimator=Part("clipped"))


def test_a_range_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at=0 must be above 0"):
        LayerOptions(Part("binary"), estimator=Part("clipped", {"at": 0}))


def test_an_estimator_without_quantized_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="estimator=clipped would do nothing with weights=none"):
        quantize(nn.Sequential(nn.Linear(4, 4)), {"weights": "none", "norm": "rms", "estimator": "clipped"})
