"""LSQ: gradients against fp64 autograd of the textbook form and ParetoQ's class; frozen to the bit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitexp.deploy.frozen import freeze
from bitexp.kernels import KERNELS
from bitexp.quant import BitConv2d, BitLinear, quantize, set_backend, set_lambda
from bitexp.quant.options import LayerOptions
from bitexp.quant.spec import Part
from tests.support.pareto import pareto

KERNEL_NAMES = [name for name in ("reference", "int8", "cpu") if not KERNELS.get(name).unavailable("cpu")]
every_kernel = pytest.mark.parametrize("kernel", KERNEL_NAMES)


def options(bits: int, activations: str = "int8", **changes: Any) -> LayerOptions:
    weights = Part("lsq", {"bits": bits, **changes})
    return LayerOptions(weights, Part.of(activations), norm="layer")


def rounded(x: Tensor) -> Tensor:
    """Rounding with the gradient of the identity."""
    return x + (x.round() - x).detach()


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """x, whose gradient is multiplied by a factor (the paper's `gradscale`)."""
    return (x - x * factor).detach() + x * factor


def textbook(layer: BitLinear, x: Tensor, step: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The layer in the dtype of its arguments, as the paper's pseudo-code has it (1902.08153, appendix)."""
    levels = layer.spec.levels
    step = scaled_gradient(step, 1 / math.sqrt(weight.numel() * levels.high))
    per_row = step[:, None] if step.dim() else step
    w = rounded((weight / per_row).clamp(levels.low, levels.high)) * per_row
    normed = F.layer_norm(x, x.shape[-1:])
    if layer.spec.activations is not None:
        scale = (normed.abs().amax(-1, keepdim=True) / 127).detach()
        normed = rounded(normed / scale) * scale
    return F.linear(normed, w, bias)


def away_from_ties(weight: Tensor, step: Tensor) -> Tensor:
    """Weights whose codes are the same in fp32 and fp64."""
    per_row = step[:, None] if step.dim() else step
    ratio = weight / per_row
    near = (ratio - ratio.floor() - 0.5).abs() < 1e-3
    return torch.where(near, weight + 0.01 * per_row, weight)


@every_kernel
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("activations", ["int8", "none"])
def test_gradients_are_those_of_the_textbook_in_fp64(
    kernel: str, granularity: str, bits: int, activations: str
) -> None:
    torch.manual_seed(bits)
    layer = BitLinear(nn.Linear(48, 24), options(bits, activations, granularity=granularity))
    layer.set_backend(KERNELS.get(kernel).backend)
    step = layer.parts.weights.step_size
    with torch.no_grad():
        step.mul_(0.7)  # so that some weights are clipped
        layer.weight.copy_(away_from_ties(layer.weight, step))
    x, target = torch.randn(9, 48, requires_grad=True), torch.randn(9, 24)
    (layer(x) * target).sum().backward()

    leaves = [t.detach().double().requires_grad_() for t in (x, step, layer.weight, layer.bias)]
    (textbook(layer, *leaves) * target.double()).sum().backward()
    for ours, theirs in zip((x, step, layer.weight, layer.bias), leaves, strict=True):
        assert torch.allclose(
            ours.grad.double(), theirs.grad, rtol=2e-4, atol=2e-4 * float(theirs.grad.abs().max())
        )


@every_kernel
@pytest.mark.parametrize("bits", [3, 4])
def test_gradients_are_those_of_pareto_q(kernel: str, bits: int) -> None:
    torch.manual_seed(bits)
    layer = BitLinear(
        nn.Linear(32, 16, bias=False), LayerOptions(Part("lsq", {"bits": bits, "init": "absmax"}))
    )
    layer.set_backend(KERNELS.get(kernel).backend)
    step = layer.parts.weights.step_size
    with torch.no_grad():
        step.mul_(0.6)
        layer.weight.copy_(away_from_ties(layer.weight, step))
    x, target = torch.randn(5, 32), torch.randn(5, 16)
    (layer(x) * target).sum().backward()

    weight = layer.weight.detach().clone().requires_grad_()
    alpha = step.detach().clone()[:, None].requires_grad_()
    quantized = pareto().LsqBinaryTernaryExtension.apply(weight, alpha, bits, False)
    (F.linear(x, quantized) * target).sum().backward()
    assert torch.allclose(layer.quantized().dequantized(), quantized, atol=2e-6)
    assert torch.allclose(layer.weight.grad, weight.grad, atol=1e-6)
    assert torch.allclose(step.grad, alpha.grad[:, 0], rtol=1e-5, atol=1e-6)


def test_the_initial_step_size_is_the_paper_s_or_pareto_q_s() -> None:
    weight = torch.randn(6, 40)
    layer = nn.Linear(40, 6)
    layer.weight = nn.Parameter(weight)
    paper = BitLinear(layer, options(4, granularity="tensor")).parts.weights.step_size
    assert paper.shape == ()
    assert paper.item() == pytest.approx(2 * float(weight.abs().mean()) / math.sqrt(7), rel=1e-6)
    rows = BitLinear(layer, options(4, init="absmax")).parts.weights.step_size
    assert torch.allclose(rows, weight.abs().amax(-1) / 7)


def test_a_step_size_is_learned_and_kept_in_the_state() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    quantize(model, "lsq", exclude=["2"])
    name = "0.parts.weights.step_size"
    assert name in dict(model.named_parameters())
    assert name in model.state_dict()
    before = model[0].parts.weights.step_size.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(torch.randn(32, 16)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model[0].parts.weights.step_size, before)


def test_codes_follow_a_step_size_that_changes_alone() -> None:
    layer = BitLinear(nn.Linear(16, 8), options(4))
    x = torch.randn(3, 16)
    first = layer(x)
    with torch.no_grad():
        layer.parts.weights.step_size.mul_(2)
    assert not torch.equal(layer(x), first)


def test_a_step_size_stays_in_fp32() -> None:
    model = nn.Sequential(nn.Linear(16, 8))
    quantize(model, "lsq")
    model[0].parts.weights.step_size.data.mul_(1.0001)
    exact = model[0].parts.weights.step_size.detach().clone()
    model.bfloat16()
    assert model[0].weight.dtype == torch.bfloat16
    assert torch.equal(model[0].parts.weights.step_size, exact)
    model(torch.randn(4, 16, dtype=torch.bfloat16)).sum().backward()
    assert model[0].parts.weights.step_size.grad.dtype == torch.float32


@every_kernel
@pytest.mark.parametrize("make", ["linear", "convolution", "grouped"])
def test_frozen_equals_evaluated_to_the_bit(kernel: str, make: str) -> None:
    torch.manual_seed(0)
    layer: nn.Module
    if make == "linear":
        layer, x = BitLinear(nn.Linear(40, 12), options(3)), torch.randn(7, 40)
    else:
        groups = 2 if make == "grouped" else 1
        conv = nn.Conv2d(8, 12, 3, padding=1, groups=groups)
        layer, x = BitConv2d(conv, options(3)), torch.randn(2, 8, 9, 9)
    model = nn.Sequential(layer)
    set_backend(model, KERNELS.get(kernel).backend)
    expected = model.eval()(x)
    freeze(model, "auto", KERNELS.get(kernel))
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_lambda_mixes_the_rule_with_the_identity(value: float) -> None:
    torch.manual_seed(0)
    layer = BitLinear(nn.Linear(16, 8), LayerOptions(Part("lsq", {"bits": 3})))
    with torch.no_grad():
        layer.parts.weights.step_size.mul_(0.5)
    x, target = torch.randn(4, 16), torch.randn(4, 8)

    def gradients(share: float) -> tuple[Tensor, Tensor]:
        layer.zero_grad()
        set_lambda(layer, share)
        (layer(x) * target).sum().backward()
        return layer.weight.grad.clone(), layer.parts.weights.step_size.grad.clone()

    identity, none = gradients(0.0)
    rule, learned = gradients(1.0)
    mixed, partly = gradients(value)
    assert torch.allclose(mixed, (1 - value) * identity + value * rule, atol=1e-6)
    assert torch.allclose(partly, value * learned, atol=1e-6)
    assert not none.any()


def test_a_layer_under_vmap_has_each_sample_s_gradient() -> None:
    layer = BitLinear(nn.Linear(8, 4, bias=False), LayerOptions(Part("lsq", {"bits": 3})))
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(given: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, given, (x[None],)).square().sum()

    x = torch.randn(5, 8)
    together = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for number in range(5):
        alone = torch.func.grad(loss)(parameters, x[number])
        for name, gradient in alone.items():
            assert torch.allclose(together[name][number], gradient, atol=1e-5)
