"""The memory of tensors that others hold stays theirs: it may be given back, as FSDP does with weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bitexp.kernels import KERNELS
from bitexp.quant import QUANTIZERS
from bitexp.quant.layers import BitConv2d, BitLinear
from tests.support.kernels import every_kernel
from tests.support.quantizers import MakeQuantizer as Make


@every_kernel
@pytest.mark.parametrize("preset", [name for name, quantizer in QUANTIZERS.items() if quantizer.quantizes])
def test_no_tensor_of_others_loses_the_way_to_give_its_memory_back(
    make_quantizer: Make, preset: str, kernel: str
) -> None:
    for layer, x in (
        (BitLinear(nn.Linear(128, 64), make_quantizer(preset)), torch.randn(5, 128)),
        (BitConv2d(nn.Conv2d(4, 8, 3), make_quantizer(preset)), torch.randn(2, 4, 6, 6)),
    ):
        layer.set_backend(KERNELS.get(kernel).backend)
        x.requires_grad_()
        y = layer(x)
        grad = torch.randn_like(y)
        gradients = torch.autograd.grad(y, [x, *layer.parameters()], grad)
        for tensor in (x, y, grad, *layer.parameters(), *gradients):
            assert tensor.untyped_storage().resizable()
