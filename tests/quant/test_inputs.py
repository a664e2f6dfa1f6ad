"""Inputs that an ordinary layer refuses, a quantized one refuses as well, in words."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bitexp.deploy.frozen import freeze_layer
from bitexp.kernels import KERNELS
from bitexp.quant.layers import BitConv2d, BitLinear
from tests.support.quantizers import MakeQuantizer as Make


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.complex64], ids=str)
@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("name", ["ternary_mean", "ternary_int4", "full_norm"])
def test_an_input_of_other_than_real_floats_is_refused(
    make_quantizer: Make, name: str, conv: bool, dtype: torch.dtype
) -> None:
    plain = nn.Conv2d(3, 8, 3) if conv else nn.Linear(6, 8)
    layer = (BitConv2d if conv else BitLinear)(plain, make_quantizer(name))  # type: ignore[arg-type]
    x = torch.ones((2, 3, 6, 6), dtype=dtype)
    with pytest.raises(RuntimeError):
        plain(x)
    layers = (
        [layer] if name == "full_norm" else [layer, freeze_layer(layer, "auto", KERNELS.get("reference"))]
    )
    for refusing in layers:
        with pytest.raises(TypeError, match=f"takes floats and not {dtype}"):
            refusing(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_lambda_is_as_exact_in_a_layer_of_another_precision(make_quantizer: Make, dtype: torch.dtype) -> None:
    layer = BitLinear(nn.Linear(6, 8), make_quantizer("ternary_mean"))
    layer.set_lambda(0.3)
    layer.to(dtype)
    assert layer.weight.dtype == dtype
    assert layer.mix.dtype == torch.float32
    assert float(layer.mix) == pytest.approx(0.3, rel=1e-6)
