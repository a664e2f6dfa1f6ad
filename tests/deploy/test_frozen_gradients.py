"""The gradient of a frozen layer's input is that of the trained layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from bitexp.deploy.frozen import freeze_layer
from bitexp.kernels import KERNELS
from bitexp.quant import QUANTIZERS
from bitexp.quant.layers import BitConv2d, BitLinear, QuantizedLayer
from tests.support.kernels import every_kernel
from tests.support.quantizers import MakeQuantizer as Make

PRESETS = [name for name, quantizer in QUANTIZERS.items() if quantizer.quantizes]
OTHERS: dict[str, dict[str, Any]] = {
    "float activations": {"activations": "none"},
    "top_k": {"sparsifier": {"name": "top_k", "keep": 0.5}},
    "rms": {"norm": "rms"},
    "no norm": {"norm": "none"},
    "per channel": {"weights": {"granularity": "channel"}},
}


def assert_same(layer: QuantizedLayer, x: torch.Tensor, kernel: str) -> None:
    frozen = freeze_layer(layer.eval(), "auto", KERNELS.get(kernel))
    without = frozen(x)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    expected, y = layer(leaves[0]), frozen(leaves[1])
    assert torch.equal(y, without)
    assert torch.equal(y, expected)
    grad = torch.randn_like(y)
    ours, theirs = (
        torch.autograd.grad(out, x, grad)[0] for out, x in ((y, leaves[1]), (expected, leaves[0]))
    )
    assert float(theirs.abs().max()) > 0
    assert_close(ours, theirs, rtol=1e-5, atol=1e-6 * float(theirs.abs().max()))


@every_kernel
@pytest.mark.parametrize("preset", PRESETS)
def test_of_every_preset(make_quantizer: Make, preset: str, kernel: str) -> None:
    torch.manual_seed(0)
    assert_same(BitLinear(nn.Linear(48, 20), make_quantizer(preset)), torch.randn(2, 3, 48), kernel)
    conv = BitConv2d(nn.Conv2d(4, 8, 3, padding=1), make_quantizer(preset))
    assert_same(conv, torch.randn(2, 4, 5, 5), kernel)


@every_kernel
@pytest.mark.parametrize("other", OTHERS)
def test_of_other_parts(make_quantizer: Make, other: str, kernel: str) -> None:
    torch.manual_seed(0)
    quantizer = make_quantizer("ternary_mean", **OTHERS[other])
    assert_same(BitLinear(nn.Linear(48, 20), quantizer), torch.randn(3, 48), kernel)


@every_kernel
def test_without_a_graph_nothing_is_recorded(make_quantizer: Make, kernel: str) -> None:
    frozen = freeze_layer(
        BitLinear(nn.Linear(48, 20), make_quantizer("ternary_mean")), "auto", KERNELS.get(kernel)
    )
    x = torch.randn(3, 48, requires_grad=True)
    with torch.no_grad():
        assert not frozen(x).requires_grad
    assert not frozen(x.detach()).requires_grad
    assert frozen(x.bfloat16()).dtype == torch.bfloat16
