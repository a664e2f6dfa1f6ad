"""Exactness: frozen layers of every kind give the bits of training, in every kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bitexp.deploy.frozen import freeze_layer
from bitexp.kernels import KERNELS
from bitexp.quant import QUANTIZERS, Part
from bitexp.quant.layers import BitConv2d, BitLinear, QuantizedLayer
from tests.support.kernels import AVAILABLE, every_kernel
from tests.support.layers import small, values
from tests.support.quantizers import MakeQuantizer as Make
from tests.support.quantizers import fits, fitting

QUANTIZING = [name for name, quantizer in QUANTIZERS.items() if quantizer.quantizes]
GROUPED = [
    name
    for name in QUANTIZING
    if "group_size" in (QUANTIZERS[name].options.weights or Part("")).options
    and QUANTIZERS[name].options.bias == "plain"
]
PRESETS = st.sampled_from(QUANTIZING)
EXAMPLES = settings(max_examples=6 * settings().max_examples)
"""Enough that each name has its share."""
REFERENCE = KERNELS.get("reference")

BATCHES = st.sampled_from([0, 1, 2, 3, 63, 64, 65])
INPUTS = st.one_of(st.integers(1, 70), st.sampled_from([127, 255, 256, 257, 1023, 4096, 4099]))
OUTPUTS = st.one_of(st.integers(1, 20), st.sampled_from([63, 64, 65]))
ROWS = st.sampled_from(["normal", "saturating", "zero", "one large", "mixed"])
CHANGES: list[dict[str, Any]] = [
    {},
    {"activations": {"qmax": 128}},
    {"bias": "scaled"},
    {"activations": {"qmax": 128}, "bias": "scaled"},
    {"activations": "none"},
    {"activations": "int4"},
    {"weights": {"granularity": "channel"}},
    {"transform": "hadamard"},
    {"sparsifier": "top_k"},
    {"sparsifier": {"name": "top_k", "keep": 0.3}, "transform": "hadamard", "activations": "int4"},
]
NORMS = st.sampled_from(["none", "rms", "layer"])


def test_the_reference_kernel_runs_everywhere() -> None:
    assert "reference" in AVAILABLE
    assert REFERENCE.unavailable("cuda") is None


def assert_frozen_is_exact(layer: QuantizedLayer, x: Tensor, kernel: str) -> None:
    """The frozen twin, and training with the kernel's product, against training with torch's."""
    with torch.no_grad():
        expected = layer.eval()(x)
        frozen = freeze_layer(layer, "auto", KERNELS.get(kernel))
        assert torch.equal(frozen(x), expected)
        layer.set_backend(KERNELS.get(kernel).backend)
        assert torch.equal(layer(x), expected)


@every_kernel
@EXAMPLES
@given(
    name=PRESETS,
    batch=BATCHES,
    inputs=INPUTS,
    outputs=OUTPUTS,
    kind=ROWS,
    data=st.data(),
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
    data: st.DataObject,
    norm: str,
    bias: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    quantizer = make_quantizer(name, norm=norm, **data.draw(fitting(name, CHANGES)))
    layer = BitLinear(nn.Linear(inputs, outputs, bias=bias), quantizer)
    assert_frozen_is_exact(layer, values(kind, (batch, inputs), seed), kernel)


@every_kernel
@EXAMPLES
@given(
    name=st.sampled_from(GROUPED),
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
    weights = {"granularity": "group", "group_size": size}
    assume(fits(name, {"weights": weights}))
    quantizer = make_quantizer(name, weights=weights)
    layer = BitLinear(nn.Linear(size * groups, 11), quantizer)
    assert_frozen_is_exact(layer, values(kind, (batch, size * groups), seed), kernel)


@every_kernel
@EXAMPLES
@given(
    name=PRESETS,
    batch=st.sampled_from([0, 1, 2, 17]),
    channels=st.integers(1, 12),
    groups=st.integers(1, 3),
    depthwise=st.booleans(),
    kernel_size=st.tuples(st.integers(1, 3), st.integers(1, 5)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    kind=ROWS,
    data=st.data(),
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
    data: st.DataObject,
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
    quantizer = make_quantizer(name, norm=norm, **data.draw(fitting(name, CHANGES)))
    rotated = (quantizer.options.transform or Part("")).options.get("applies_to") == "both"
    assume(conv.groups == 1 or not rotated)  # which is refused
    layer = BitConv2d(conv, quantizer)
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
@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("activations", ["int8", "int4", "none"])
def test_weights_that_are_rotated_as_well_give_the_same_bits(
    make_quantizer: Make, kernel: str, conv: bool, activations: str
) -> None:
    torch.manual_seed(0)
    rotation = {"name": "hadamard", "applies_to": "both"}
    layer, x = small(make_quantizer("ternary_mean", transform=rotation, activations=activations), conv)
    assert_frozen_is_exact(layer, x.detach(), kernel)
