"""Every preset after two steps, all that it learns moved: frozen it gives the bits of evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bitexp.deploy.frozen import freeze_layer
from bitexp.kernels import KERNELS
from bitexp.quant import QUANTIZERS, BitConv2d, BitLinear
from bitexp.quant.layers import QuantizedLayer
from tests.support.kernels import AVAILABLE
from tests.support.quantizers import MakeQuantizer as Make

PRESETS = [name for name, quantizer in QUANTIZERS.items() if quantizer.quantizes]


def trained(layer: QuantizedLayer, x: torch.Tensor) -> QuantizedLayer:
    """The layer after two steps, all parameters of which had gradients."""
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    for share in (0.3, 1.0):
        layer.set_progress(share)
        optimizer.zero_grad()
        y = layer(x)
        (y * torch.randn_like(y)).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
        optimizer.step()
    return layer.eval()


@pytest.mark.parametrize("preset", PRESETS)
def test_frozen_equals_evaluated_to_the_bit(make_quantizer: Make, preset: str) -> None:
    torch.manual_seed(0)
    quantizer = make_quantizer(preset)
    # zeros around the image: no code of theirs may be other than zero
    convolution = nn.Conv2d(4, 8, 3, padding=1, stride=2)
    for layer, x in (
        (BitLinear(nn.Linear(48, 20), quantizer), torch.randn(5, 48)),
        (BitConv2d(convolution, quantizer), torch.randn(2, 4, 7, 7)),
    ):
        expected = trained(layer, x)(x)
        for kernel in AVAILABLE:
            frozen = freeze_layer(layer, "auto", KERNELS.get(kernel))
            layer.set_backend(KERNELS.get(kernel).backend)
            assert torch.equal(frozen(x), expected)
            assert torch.equal(layer(x), expected)
