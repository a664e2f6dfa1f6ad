"""Layers against int64 sums in numpy and the fixed order of roundings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from bitexp.deploy.frozen import freeze_layer
from bitexp.kernels import KERNELS
from bitexp.quant import WEIGHTS
from bitexp.quant.layers import BitConv2d, BitLinear, QuantizedLayer
from tests.support.kernels import every_kernel
from tests.support.layers import values
from tests.support.quantizers import MakeQuantizer as Make
from tests.support.quantizers import fitting

CHANGES: list[dict[str, Any]] = [
    {},
    {"activations": {"qmax": 128}},
    {"bias": "scaled"},
    {"weights": {"granularity": "tensor"}},
    {"weights": {"granularity": "channel"}},
]
PLAIN = [
    name
    for name in WEIGHTS.names()
    if WEIGHTS.get(name)(torch.ones(1, 1)).levels.planes == 1 and not WEIGHTS.get(name).has_output_offset
]
ROWS = st.sampled_from(["normal", "saturating", "zero", "one large", "mixed"])


@every_kernel
def test_sums_at_the_bound_of_fp32_are_exact(make_quantizer: Make, kernel: str) -> None:
    """132,104 inputs of code 127 with weights of code 1: the largest sum that is allowed."""
    inputs = 132_104
    layer = BitLinear(nn.Linear(inputs, 2, bias=False), make_quantizer("ternary_mean", norm="none"))
    with torch.no_grad():
        layer.weight.fill_(0.5)
    x = torch.full((2, inputs), 127.0)
    x[1, 0] = -127.0
    frozen = freeze_layer(layer, "auto", KERNELS.get(kernel))
    sums = np.array([127 * inputs, 127 * (inputs - 2)], np.int64).astype(np.float32)
    expected = torch.from_numpy(sums * np.float32(0.5))[:, None].expand(2, 2)
    assert torch.equal(layer(x), expected)
    assert torch.equal(frozen(x), expected)


def qmax_of(layer: QuantizedLayer) -> int:
    """The code of the largest activation."""
    assert layer.spec.activations is not None
    assert layer.spec.activations.absmax is not None
    return layer.spec.activations.absmax


def numpy_codes(x: Tensor, qmax: int, axes: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Activation codes as int64, and their steps in fp32."""
    values = x.numpy()
    absmax = np.maximum(np.abs(values).max(axes, keepdims=True), np.float32(1e-5))
    codes = np.rint(values * (np.float32(1) / absmax * np.float32(qmax)))
    return np.minimum(codes, 127).astype(np.int64), absmax / np.float32(qmax)


def numpy_linear(layer: BitLinear, x: Tensor) -> NDArray[Any]:
    """int64 sums, then each rounding in fp32 by itself in the fixed order; groups ascending."""
    codes, x_step = numpy_codes(x, qmax_of(layer), (-1,))
    w_codes, w_step = (t.numpy() for t in layer.quantized()[:2])
    bias = None if layer.bias is None else layer.bias.detach().numpy()
    groups = w_step.shape[1] if w_step.ndim == 2 else 1
    parts = []
    for g in range(groups):
        chosen = slice(g * x.shape[-1] // groups, (g + 1) * x.shape[-1] // groups)
        part = (codes[:, chosen] @ w_codes[:, chosen].astype(np.int64).T).astype(np.float32)
        if bias is not None and layer.spec.bias == "scaled":
            part = part + bias
        parts.append(part * (x_step * (w_step[:, g] if w_step.ndim == 2 else w_step)))
    y = parts[0]
    for part in parts[1:]:
        y = y + part
    return y + bias if bias is not None and layer.spec.bias == "plain" else y


@every_kernel
@settings(max_examples=5 * settings().max_examples)
@given(
    name=st.sampled_from(PLAIN),
    batch=st.integers(1, 9),
    size=st.integers(1, 70),
    groups=st.integers(1, 4),
    data=st.data(),
    bias=st.booleans(),
    kind=ROWS,
    seed=st.integers(0, 2**32 - 1),
)
def test_a_linear_equals_int64_sums_and_the_fixed_order_of_roundings(
    make_quantizer: Make,
    name: str,
    kernel: str,
    batch: int,
    size: int,
    groups: int,
    data: st.DataObject,
    bias: bool,
    kind: str,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    grouped = {"weights": {"granularity": "group", "group_size": size}}
    possible = [{**c, "weights": {"name": name, **c.get("weights", {})}} for c in (*CHANGES, grouped)]
    quantizer = make_quantizer("b158", **data.draw(fitting("b158", possible)))
    layer = BitLinear(nn.Linear(size * groups, 13, bias=bias), quantizer).eval()
    x = values(kind, (batch, size * groups), seed)
    expected = numpy_linear(layer, x)
    assert expected.dtype == np.float32
    with torch.no_grad():
        assert np.array_equal(layer(x).numpy(), expected)
        frozen = freeze_layer(layer, "auto", KERNELS.get(kernel))
        assert np.array_equal(frozen(x).numpy(), expected)


def numpy_conv(layer: BitConv2d, x: Tensor) -> NDArray[Any]:
    """The same for a convolution, over patches that numpy cuts out."""
    assert layer.spec.conv is not None
    (stride_h, stride_w), (pad_h, pad_w), (dil_h, dil_w), groups = layer.spec.conv
    codes, x_step = numpy_codes(x, qmax_of(layer), (1, 2, 3))
    w_codes, w_step = (t.numpy() for t in layer.quantized()[:2])
    outputs, _, height, width = w_codes.shape
    padded = np.pad(codes, ((0, 0), (0, 0), (pad_h, pad_h), (pad_w, pad_w)))
    window = ((height - 1) * dil_h + 1, (width - 1) * dil_w + 1)
    patches = np.lib.stride_tricks.sliding_window_view(padded, window, (2, 3))
    patches = patches[:, :, ::stride_h, ::stride_w, ::dil_h, ::dil_w]
    sums = [
        np.einsum("bchwij,ocij->bohw", p, w.astype(np.int64))
        for p, w in zip(np.split(patches, groups, 1), np.split(w_codes, groups, 0), strict=True)
    ]
    y = np.concatenate(sums, 1).astype(np.float32)
    per_output = w_step.reshape(-1, 1, 1)
    bias = np.zeros(outputs, np.float32) if layer.bias is None else layer.bias.detach().numpy()
    if layer.spec.bias == "scaled":
        return (y + bias[:, None, None]) * (x_step * per_output)
    return y * (x_step * per_output) + bias[:, None, None]


CONVS: list[dict[str, Any]] = [
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (1, 3), "dilation": (1, 2), "padding": (0, 2)},
    {"kernel_size": 3, "groups": 3},
    {"kernel_size": 5, "padding": 2, "groups": 6},
]


@every_kernel
@pytest.mark.parametrize("options", CONVS)
@pytest.mark.parametrize(
    "changes", [{}, {"activations": {"qmax": 128}, "bias": "scaled"}, {"weights": {"granularity": "channel"}}]
)
@pytest.mark.parametrize("kind", ["normal", "saturating", "mixed"])
def test_a_convolution_equals_int64_sums_and_the_fixed_order_of_roundings(
    make_quantizer: Make, kernel: str, options: dict[str, Any], changes: dict[str, Any], kind: str
) -> None:
    torch.manual_seed(0)
    quantizer = make_quantizer("ternary_mean", norm="none", **changes)
    layer = BitConv2d(nn.Conv2d(6, 12, **options), quantizer)
    x = values(kind, (5, 6, 9, 10), seed=1)
    expected = numpy_conv(layer, x)
    assert expected.dtype == np.float32
    with torch.no_grad():
        assert np.array_equal(layer(x).numpy(), expected)
        frozen = freeze_layer(layer, "auto", KERNELS.get(kernel))
        assert np.array_equal(frozen(x).numpy(), expected)


@every_kernel
def test_a_wide_convolution_over_a_batch_is_exact(make_quantizer: Make, kernel: str) -> None:
    """Sizes at which libraries switch to other algorithms, such as Winograd's, that would round."""
    torch.manual_seed(0)
    layer = BitConv2d(nn.Conv2d(64, 64, 3, padding=1), make_quantizer("ternary_mean", norm="none"))
    x = values("saturating", (16, 64, 16, 16), seed=1)
    with torch.no_grad():
        y = layer(x).numpy()
        assert np.array_equal(freeze_layer(layer, "auto", KERNELS.get(kernel))(x).numpy(), y)
    assert np.array_equal(y, numpy_conv(layer, x))
