"""A training step by the GPU's kernels: the output and the gradients of `BitLinear` by torch."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from bitexp.kernels import KERNELS
from bitexp.kernels.gpu.training import GpuTraining
from bitexp.quant.layers import BitLinear

FUSED = KERNELS.get("triton").fused


@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
@pytest.mark.parametrize(
    "changes", [{}, {"granularity": "channel"}, {"act_qmax": 128, "bias": "scaled"}], ids=str
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
    codes, scale = quantizer.weights(layer.weight)
    spec = SimpleNamespace(
        conv=None, norm=norm, qmax=quantizer.act_qmax, scaled_bias=quantizer.bias == "scaled",
        dtype=torch.float32, grad_dtype=torch.float32,
    )  # fmt: skip
    with torch.no_grad():
        y, *saved = FUSED.forward(x, layer.bias, codes, scale, spec)
        kept = None if norm == "none" else x
        ours = FUSED.backward(grad, kept, tuple(saved), codes, scale, spec, (True, True, bias))
    if norm == "none":
        assert torch.equal(y, expected)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=0.01)
    assert y._base is None
    assert saved[0].shape == x.shape
    assert saved[1].shape == (2, 5, 1)
    assert (ours[2] is None) != bias
    for a, b in zip(ours, grads, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=0.01 if norm != "none" else 1e-4)


def test_only_what_is_needed_is_computed(device: str) -> None:
    spec = SimpleNamespace(
        conv=None, norm="none", qmax=127, scaled_bias=False, dtype=torch.bfloat16, grad_dtype=torch.float32
    )
    codes, scale = torch.ones(3, 8, dtype=torch.int8, device=device), torch.ones((), device=device)
    y, *saved = FUSED.forward(torch.ones(4, 8, device=device), None, codes, scale, spec)
    assert y.dtype == torch.bfloat16
    for needed in ((True, False, False), (False, True, False), (False, False, True)):
        grads = FUSED.backward(
            torch.ones(4, 3, device=device), None, tuple(saved), codes, scale, spec, needed
        )
        assert tuple(g is not None for g in grads) == needed


def test_what_it_takes(device: str) -> None:
    x, codes = torch.ones(4, 8, device=device), torch.ones(3, 8, device=device)

    def takes(x: torch.Tensor = x, steps: int = 0, conv: Any = None, qmax: int = 127) -> bool:
        spec = SimpleNamespace(conv=conv, qmax=qmax)
        return GpuTraining().takes(x, codes, torch.ones((2,) * steps), spec)

    assert takes() == (device == "cuda")
    assert not takes(x[:0])
    assert not takes(steps=2)
    assert not takes(qmax=0)
    assert not takes(conv=((1, 1), (0, 0), (1, 1), 1))


def test_the_median_of_weights_is_torch_s(device: str) -> None:
    w = torch.randn(2, 77, device=device)
    assert torch.equal(FUSED.abs_median(w), w.abs().median(-1, keepdim=True).values)
