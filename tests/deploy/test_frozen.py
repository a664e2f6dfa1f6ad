"""Exactness: frozen layers give the bits of training, in every kernel; integer sums against numpy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from bitexp.deploy.frozen import FrozenLayer, FrozenSpec, freeze, freeze_layer
from bitexp.deploy.packing import LAYOUTS
from bitexp.kernels import KERNELS
from bitexp.quant import QUANTIZERS, Quantizer
from bitexp.quant.layers import BitConv2d, BitLinear, QuantizedLayer

Make = MakeQuantizer

QUANTIZING = [name for name in QUANTIZERS.names() if QUANTIZERS.get(name).quantizes_weights]
AVAILABLE = [name for name in KERNELS.names() if not KERNELS.get(name).unavailable("cpu")]
REFERENCE = KERNELS.get("reference")

every_kernel = pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(name not in AVAILABLE, reason=str(KERNELS.get(name).unavailable("cpu"))),
        )
        for name in KERNELS.names()
    ],
)

BATCHES = st.sampled_from([0, 1, 2, 3, 63, 64, 65])
INPUTS = st.one_of(st.integers(1, 70), st.sampled_from([127, 255, 256, 257, 1023, 4096, 4099]))
OUTPUTS = st.one_of(st.integers(1, 20), st.sampled_from([63, 64, 65]))
ROWS = st.sampled_from(["normal", "saturating", "zero", "one large", "mixed"])
CHANGES = st.sampled_from(
    [
        {},
        {"activations": {"qmax": 128}},
        {"bias": "scaled"},
        {"activations": {"qmax": 128}, "bias": "scaled"},
        {"activations": "none"},
        {"weights": {"granularity": "channel"}},
    ]
)
NORMS = st.sampled_from(["none", "rms", "layer"])


def test_the_reference_kernel_runs_everywhere() -> None:
    assert "reference" in AVAILABLE
    assert REFERENCE.unavailable("cuda") is None


def values(kind: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Inputs of a kind; `saturating` rows have the codes +-127 throughout."""
    draw = torch.Generator().manual_seed(seed)
    normal = torch.randn(shape, generator=draw)
    if kind == "saturating":
        return normal.sign() * 3.7
    if kind == "zero":
        return torch.zeros(shape)
    if kind == "one large":
        return normal * (torch.rand(shape, generator=draw) < 0.01) * 1e4
    if kind == "mixed" and shape[0] > 2:
        normal[0], normal[1], normal[2] = 0, 5, normal[2].sign()
    return normal


def assert_frozen_is_exact(layer: QuantizedLayer, x: Tensor, kernel: str) -> None:
    """The frozen twin, and training with the kernel's product, against training with torch's."""
    with torch.no_grad():
        expected = layer.eval()(x)
        frozen = freeze_layer(layer, "auto", KERNELS.get(kernel))
        assert torch.equal(frozen(x), expected)
        layer.product = KERNELS.get(kernel).product
        assert torch.equal(layer(x), expected)


@every_kernel
@pytest.mark.parametrize("name", QUANTIZING)
@given(
    batch=BATCHES,
    inputs=INPUTS,
    outputs=OUTPUTS,
    kind=ROWS,
    changes=CHANGES,
    norm=NORMS,
    bias=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_frozen_linear_gives_the_bits_of_training(
    make_quantizer: Make,
    name: str,
    kernel: str,
    batch: int,
    inputs: int,
    outputs: int,
    kind: str,
    changes: dict[str, Any],
    norm: str,
    bias: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    quantizer = make_quantizer(name, norm=norm, **changes)
    layer = BitLinear(nn.Linear(inputs, outputs, bias=bias), quantizer)
    assert_frozen_is_exact(layer, values(kind, (batch, inputs), seed), kernel)


@every_kernel
@pytest.mark.parametrize("name", QUANTIZING)
@given(
    batch=BATCHES,
    size=st.sampled_from([1, 7, 16, 64]),
    groups=st.integers(1, 5),
    kind=ROWS,
    seed=st.integers(0, 2**32 - 1),
)
def test_a_frozen_linear_with_groups_gives_the_bits_of_training(
    make_quantizer: Make, name: str, kernel: str, batch: int, size: int, groups: int, kind: str, seed: int
) -> None:
    torch.manual_seed(seed)
    quantizer = make_quantizer(name, weights={"granularity": "group", "group_size": size})
    layer = BitLinear(nn.Linear(size * groups, 11), quantizer)
    assert_frozen_is_exact(layer, values(kind, (batch, size * groups), seed), kernel)


@every_kernel
@pytest.mark.parametrize("name", QUANTIZING)
@given(
    batch=st.sampled_from([0, 1, 2, 17]),
    channels=st.integers(1, 12),
    groups=st.integers(1, 3),
    depthwise=st.booleans(),
    kernel_size=st.tuples(st.integers(1, 3), st.integers(1, 5)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    kind=ROWS,
    changes=CHANGES,
    norm=NORMS,
    bias=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_frozen_convolution_gives_the_bits_of_training(
    make_quantizer: Make,
    name: str,
    kernel: str,
    batch: int,
    channels: int,
    groups: int,
    depthwise: bool,
    kernel_size: tuple[int, int],
    stride: int,
    padding: int,
    dilation: int,
    kind: str,
    changes: dict[str, Any],
    norm: str,
    bias: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    channels *= groups
    conv = nn.Conv2d(
        channels,
        channels if depthwise else 5 * groups,
        kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=channels if depthwise else groups,
        bias=bias,
    )
    layer = BitConv2d(conv, make_quantizer(name, norm=norm, **changes))
    assert_frozen_is_exact(layer, values(kind, (batch, channels, 9, 10), seed), kernel)


@every_kernel
@pytest.mark.parametrize("shape", [(40,), (2, 3, 40), (2, 0, 40), (2, 3, 4, 40)])
def test_leading_dimensions_are_kept(make_quantizer: Make, kernel: str, shape: tuple[int, ...]) -> None:
    layer = BitLinear(nn.Linear(40, 24), make_quantizer("ternary_mean"))
    assert layer(torch.randn(shape)).shape == (*shape[:-1], 24)
    assert_frozen_is_exact(layer, torch.randn(shape), kernel)


@every_kernel
def test_a_single_image_is_taken_without_a_batch(make_quantizer: Make, kernel: str) -> None:
    layer = BitConv2d(nn.Conv2d(4, 6, 3), make_quantizer("ternary_mean"))
    assert_frozen_is_exact(layer, torch.randn(4, 7, 7), kernel)


@every_kernel
def test_inputs_that_are_not_contiguous_give_the_same_bits(make_quantizer: Make, kernel: str) -> None:
    layer = BitLinear(nn.Linear(40, 24), make_quantizer("ternary_mean", norm="none"))
    frozen = freeze_layer(layer, "auto", KERNELS.get(kernel))
    x = torch.randn(40, 30).t()[::2]
    assert not x.is_contiguous()
    assert torch.equal(frozen(x), layer(x.contiguous()))


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


def numpy_codes(x: Tensor, qmax: int, axes: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Activation codes as int64, and their steps in fp32."""
    values = x.numpy()
    absmax = np.maximum(np.abs(values).max(axes, keepdims=True), np.float32(1e-5))
    codes = np.rint(values * (np.float32(1) / absmax * np.float32(qmax)))
    return np.minimum(codes, 127).astype(np.int64), absmax / np.float32(qmax)


def numpy_linear(layer: BitLinear, x: Tensor) -> NDArray[Any]:
    """int64 sums, then each rounding in fp32 by itself in the fixed order; groups ascending."""
    codes, x_step = numpy_codes(x, layer.quantizer.act_qmax, (-1,))
    w_codes, w_step = (t.numpy() for t in layer.quantizer.weights(layer.weight))
    bias = None if layer.bias is None else layer.bias.detach().numpy()
    groups = w_step.shape[1] if w_step.ndim == 2 else 1
    parts = []
    for g in range(groups):
        chosen = slice(g * x.shape[-1] // groups, (g + 1) * x.shape[-1] // groups)
        part = (codes[:, chosen] @ w_codes[:, chosen].astype(np.int64).T).astype(np.float32)
        if bias is not None and layer.quantizer.bias == "scaled":
            part = part + bias
        parts.append(part * (x_step * (w_step[:, g] if w_step.ndim == 2 else w_step)))
    y = parts[0]
    for part in parts[1:]:
        y = y + part
    return y + bias if bias is not None and layer.quantizer.bias == "plain" else y


@every_kernel
@pytest.mark.parametrize("name", QUANTIZING)
@given(
    batch=st.integers(1, 9),
    size=st.integers(1, 70),
    groups=st.integers(1, 4),
    changes=st.sampled_from(
        [
            {},
            {"activations": {"qmax": 128}},
            {"bias": "scaled"},
            {"weights": {"granularity": "channel"}},
            {"weights": {"granularity": "group"}},
        ]
    ),
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
    changes: dict[str, Any],
    bias: bool,
    kind: str,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    if changes.get("granularity") == "group":
        changes = {**changes, "group_size": size}
    quantizer = make_quantizer(name, norm="none", **changes)
    layer = BitLinear(nn.Linear(size * groups, 13, bias=bias), quantizer)
    x = values(kind, (batch, size * groups), seed)
    expected = numpy_linear(layer, x)
    assert expected.dtype == np.float32
    with torch.no_grad():
        assert np.array_equal(layer(x).numpy(), expected)
        frozen = freeze_layer(layer, "auto", KERNELS.get(kernel))
        assert np.array_equal(frozen(x).numpy(), expected)


def numpy_conv(layer: BitConv2d, x: Tensor) -> NDArray[Any]:
    """The same for a convolution, over patches that numpy cuts out."""
    assert layer.conv is not None
    (stride_h, stride_w), (pad_h, pad_w), (dil_h, dil_w), groups = layer.conv
    codes, x_step = numpy_codes(x, layer.quantizer.act_qmax, (1, 2, 3))
    w_codes, w_step = (t.numpy() for t in layer.quantizer.weights(layer.weight))
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
    if layer.quantizer.bias == "scaled":
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
@pytest.mark.parametrize("changes", [{}, {"activations": {"qmax": 128}, "bias": "scaled"}, {"weights": {"granularity": "channel"}}])
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


def network(quantizer: Quantizer) -> nn.Module:
    """A convolution and a linear that is used twice."""
    linear = BitLinear(nn.Linear(8, 8), quantizer)
    conv = BitConv2d(nn.Conv2d(1, 8, 3), quantizer)
    return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear, nn.GELU(), linear)


@every_kernel
def test_a_frozen_model_gives_the_bits_of_the_trained_one(make_quantizer: Make, kernel: str) -> None:
    torch.manual_seed(0)
    model = network(make_quantizer("ternary_mean")).eval()
    x = torch.randn(4, 1, 6, 6)
    expected = model(x)
    frozen = freeze(model, "auto", KERNELS.get(kernel))
    assert set(frozen) == {"0", "3"}
    assert model[0] is frozen["0"]
    assert model[3] is frozen["3"]
    assert model[5] is model[3]
    assert not list(model.parameters())
    assert torch.equal(model(x), expected)


def test_a_model_that_is_a_single_layer_is_refused(make_quantizer: Make) -> None:
    layer = BitLinear(nn.Linear(8, 4), make_quantizer("ternary_mean"))
    with pytest.raises(ValueError, match="wrap it in a module"):
        freeze(layer, "auto", REFERENCE)


@pytest.mark.parametrize("name", QUANTIZING)
@pytest.mark.parametrize("layout", ["auto", *LAYOUTS])
def test_every_layout_that_holds_the_codes_gives_the_same_bits(
    make_quantizer: Make, name: str, layout: str
) -> None:
    torch.manual_seed(0)
    layer = BitLinear(nn.Linear(37, 5), make_quantizer(name))
    x = torch.randn(3, 37)
    codes = {int(code) for code in layer.quantizer.weights(layer.weight)[0].unique()}
    if layout != "auto":
        one = LAYOUTS[layout]
        if not codes <= set(range(one.low, one.high + 1, one.stride)):
            with pytest.raises(ValueError, match=f"do not fit the layout {layout}"):
                freeze_layer(layer, layout, REFERENCE)
            return
    frozen = freeze_layer(layer, layout, REFERENCE)
    per_row = -(-37 // LAYOUTS[frozen.spec.layout].per_byte)
    assert frozen.packed.shape == (5, per_row)
    assert torch.equal(frozen(x), layer(x))


def test_a_frozen_layer_keeps_its_own_memory(make_quantizer: Make) -> None:
    layer = BitLinear(nn.Linear(8, 4), make_quantizer("ternary_mean"))
    frozen = freeze_layer(layer, "auto", REFERENCE)
    x = torch.randn(3, 8)
    before = frozen(x)
    with torch.no_grad():
        layer.weight.neg_()
        assert layer.bias is not None
        layer.bias.add_(1)
    assert torch.equal(frozen(x), before)
    assert set(frozen.state_dict()) == {"packed", "scale", "bias"}
    assert not list(frozen.parameters())


@every_kernel
def test_a_frozen_layer_computes_with_the_state_that_was_loaded(make_quantizer: Make, kernel: str) -> None:
    layers = [BitLinear(nn.Linear(8, 4), make_quantizer("ternary_mean")) for _ in range(2)]
    one, other = (freeze_layer(layer, "pack5", KERNELS.get(kernel)) for layer in layers)
    x = torch.randn(3, 8)
    assert not torch.equal(one(x), other(x))
    one.load_state_dict(other.state_dict())
    assert torch.equal(one(x), other(x))


@every_kernel
def test_a_frozen_layer_survives_deepcopy_and_a_move(make_quantizer: Make, kernel: str) -> None:
    layer = BitLinear(nn.Linear(8, 4), make_quantizer("ternary_mean"))
    frozen = freeze_layer(layer, "auto", KERNELS.get(kernel))
    x = torch.randn(3, 8)
    assert torch.equal(copy.deepcopy(frozen)(x), frozen(x))
    assert torch.equal(copy.deepcopy(frozen).cpu()(x), frozen(x))
    frozen.use(REFERENCE)
    assert torch.equal(frozen(x), layer(x))


@every_kernel
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_in_bf16_a_frozen_layer_rounds_only_the_result(make_quantizer: Make, kernel: str, norm: str) -> None:
    torch.manual_seed(0)
    layer = BitLinear(nn.Linear(40, 24), make_quantizer("ternary_mean", norm=norm))
    frozen = freeze_layer(layer, "auto", KERNELS.get(kernel))
    x = torch.randn(3, 40)
    with torch.autocast("cpu", torch.bfloat16):
        y = frozen(x)
        assert torch.equal(y, layer(x))
    assert torch.equal(y, layer(x).bfloat16())
    assert torch.equal(frozen(x.bfloat16()), layer(x.bfloat16()))
    assert frozen(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("conv", [None, ((1, 2), (0, 1), (1, 1), 4)])
def test_a_description_survives_json(conv: Any) -> None:
    import json

    spec = FrozenSpec((8, 4, 3, 3), "pack5", "rms", 127, False, conv)
    assert FrozenSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_layer_whose_bytes_no_codes_make_is_refused() -> None:
    spec = FrozenSpec((2, 5), "pack5", "none", 127, False, None)
    packed = torch.full((2, 1), 243, dtype=torch.uint8)
    with pytest.raises(ValueError, match="damaged"):
        FrozenLayer(spec, packed, torch.ones(()), None, REFERENCE)
