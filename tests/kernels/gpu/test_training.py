"""A training step by the GPU's kernels: the output and the gradients of `BitLinear` by torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from bitexp.kernels import KERNELS
from bitexp.kernels.gpu.training import GpuBackend
from bitexp.quant.backend import Call
from bitexp.quant.layers import BitLinear
from bitexp.quant.spec import ConvArgs, LayerSpec
from tests.support.specs import INT4, spec_for

BACKEND = KERNELS.get("triton").backend


def call(spec: LayerSpec, dtype: torch.dtype = torch.float32) -> Call:
    return Call(spec, BACKEND, dtype, torch.float32, True)


@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"weights": {"granularity": "channel"}}, {"activations": {"qmax": 128}, "bias": "scaled"}],
    ids=str,
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_step_is_that_of_torch(
    make_quantizer: Callable[..., Any], device: str, norm: str, changes: dict[str, Any], bias: bool
) -> None:
    torch.manual_seed(0)
    quantizer = make_quantizer("ternary_mean", norm=norm, **changes)
    layer = BitLinear(nn.Linear(40, 12, bias=bias), quantizer).to(device)
    x = torch.randn(2, 5, 40, device=device, requires_grad=True)
    expected = layer(x)
    grad = torch.randn_like(expected)
    leaves = [x, layer.weight, *([layer.bias] if bias else [])]
    grads = torch.autograd.grad(expected, leaves, grad)
    codes, scale, _ = layer.quantized()
    assert layer.spec.norm == norm
    given = call(layer.spec)
    with torch.no_grad():
        y, *saved = BACKEND.forward(x, layer.bias, codes, scale, given)
        kept = None if norm == "none" else x
        ours = BACKEND.backward(grad, kept, tuple(saved), codes, scale, given, (True, True, bias))
    assert torch.equal(y, expected)
    assert y._base is None
    assert saved[0].shape == x.shape
    assert saved[1].shape == (2, 5, 1)
    assert (ours[2] is None) != bias
    for a, b in zip(ours, grads, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=0.01 if norm != "none" else 1e-4)


def test_only_what_is_needed_is_computed(device: str) -> None:
    given = call(spec_for(), torch.bfloat16)
    codes, scale = torch.ones(3, 8, dtype=torch.int8, device=device), torch.ones((), device=device)
    y, *saved = BACKEND.forward(torch.ones(4, 8, device=device), None, codes, scale, given)
    assert y.dtype == torch.bfloat16
    for needed in ((True, False, False), (False, True, False), (False, False, True)):
        ones = torch.ones(4, 3, device=device)
        grads = BACKEND.backward(ones, None, tuple(saved), codes, scale, given, needed)
        assert tuple(g is not None for g in grads) == needed


def test_what_it_takes(device: str) -> None:
    x, codes = torch.ones(4, 8, device=device), torch.ones(3, 8, device=device)

    def takes(x: torch.Tensor = x, steps: int = 0, conv: ConvArgs | None = None, qmax: int = 127) -> bool:
        return GpuBackend().takes(x, codes, torch.ones((2,) * steps), spec_for(qmax, conv=conv))

    assert takes() == (device == "cuda")
    assert not takes(x[:0])
    assert not takes(steps=2)
    assert not takes(qmax=0)
    assert not takes(conv=((1, 1), (0, 0), (1, 1), 1))
    assert not GpuBackend().takes(x, codes, torch.ones(()), LayerSpec(activations=INT4))


def test_the_median_of_weights_is_torch_s(device: str) -> None:
    w = torch.randn(2, 77, device=device)
    assert torch.equal(BACKEND.abs_median(w), w.abs().median(-1, keepdim=True).values)
