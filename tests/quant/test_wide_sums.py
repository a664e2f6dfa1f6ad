"""Sums beyond the integers of fp32: an int32 sum that is rounded once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bitexp.deploy.frozen import freeze_layer
from bitexp.kernels import KERNELS
from bitexp.quant import QUANTIZERS
from bitexp.quant.layers import BitConv2d, BitLinear, QuantizedLayer
from tests.support.kernels import every_kernel
from tests.support.layers import assert_equals_textbook
from tests.support.quantizers import MakeQuantizer as Make

PRESETS = [name for name, quantizer in QUANTIZERS.items() if quantizer.options.activations]
EIGHT_BITS = {"weights": {"bits": 8}}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("name", "qmax", "largest"),
    [
        ("ternary_mean", 127, 132_104),
        ("ternary_mean", 128, 131_072),
        ("binary", 127, 132_104),
    ],
)
def test_more_inputs_than_fp32_can_sum_exactly_are_summed_another_way(
    make_quantizer: Make, name: str, qmax: int, largest: int
) -> None:
    quantizer = make_quantizer(name, activations={"qmax": qmax})
    assert not BitLinear(nn.Linear(largest, 1, device="meta"), quantizer).spec.wide
    assert BitLinear(nn.Linear(largest + 1, 1, device="meta"), quantizer).spec.wide
    floats = make_quantizer(name, activations="none")
    assert not BitLinear(nn.Linear(largest + 1, 1, device="meta"), floats).spec.wide


@pytest.mark.parametrize("name", PRESETS)
def test_the_bound_of_32_bits_holds_for_the_declared_codes_of_every_quantizer(
    make_quantizer: Make, name: str
) -> None:
    quantizer = make_quantizer(name)
    spec = BitLinear(nn.Linear(2, 1), quantizer).spec
    assert spec.activations is not None
    inputs = (2**31 - 1) // (spec.activations.levels.largest * spec.levels.largest)
    assert BitLinear(nn.Linear(inputs, 1, device="meta"), quantizer).spec.wide
    with pytest.raises(ValueError, match=f"{inputs + 1:,} inputs .*more than 32 bits hold"):
        BitLinear(nn.Linear(inputs + 1, 1, device="meta"), quantizer)
    with pytest.raises(ValueError, match="more than 32 bits hold"):
        BitConv2d(nn.Conv2d(inputs, 1, (1, 2), device="meta"), quantizer)
    BitLinear(nn.Linear(inputs + 1, 1, device="meta"), make_quantizer(name, activations="none", bias="plain"))


def integers(shape: tuple[int, ...], seed: int) -> Tensor:
    """Whole numbers from -127 to 127, mostly large ones of one sign; their largest is 127 in each row."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.randint(90, 128, shape, generator=draw)
    values[torch.rand(shape, generator=draw) < 0.02] *= -1
    values.flatten(1)[:, 0] = 127
    return values


def test_the_bound_of_32_bits_holds_in_every_stage(make_quantizer: Make) -> None:
    final = {"activations": "int4", **EIGHT_BITS}
    layer = nn.Linear(150_000, 1, device="meta")
    quantizer = make_quantizer("int", **final, stages=[{"until": 0.5, "activations": "int8"}])
    assert BitLinear(layer, quantizer.options).spec.wide
    with pytest.raises(ValueError, match="more than 32 bits hold"):
        BitLinear(layer, quantizer.options, quantizer.staged(quantizer.options))


@every_kernel
@pytest.mark.parametrize("inputs", [1_700, 4_099, 20_000])
def test_sums_of_int8_codes_equal_those_of_int64_rounded_once(
    make_quantizer: Make, kernel: str, inputs: int
) -> None:
    x, w = integers((5, inputs), 0), integers((7, inputs), 1)
    exact = x.numpy().astype(np.int64) @ w.numpy().astype(np.int64).T
    assert (exact > 2**24).any()
    rounded = exact.astype(np.float32)
    assert (rounded.astype(np.int64) != exact).any()
    layer = BitLinear(nn.Linear(inputs, 7, bias=False), make_quantizer("int", norm="none", **EIGHT_BITS))
    assert layer.spec.wide
    assert_sums(layer, x, w, rounded, kernel)


@every_kernel
@pytest.mark.parametrize("groups", [1, 2])
def test_wide_sums_of_convolutions_equal_those_of_int64_rounded_once(
    make_quantizer: Make, kernel: str, groups: int
) -> None:
    x, w = integers((2, 256 * groups, 5, 4), 0), integers((2 * groups, 256, 3, 3), 1)
    patches = np.lib.stride_tricks.sliding_window_view(x.numpy(), (3, 3), (2, 3))
    exact = np.concatenate(
        [
            np.einsum("bchwij,ocij->bohw", p, k)
            for p, k in zip(np.split(patches, groups, 1), np.split(w.numpy(), groups), strict=True)
        ],
        1,
    )
    rounded = exact.astype(np.float32)
    assert (rounded.astype(np.int64) != exact).any()
    conv = nn.Conv2d(256 * groups, 2 * groups, 3, groups=groups, bias=False)
    layer = BitConv2d(conv, make_quantizer("int", norm="none", **EIGHT_BITS))
    assert layer.spec.wide
    assert_sums(layer, x, w, rounded, kernel)


def assert_sums(
    layer: QuantizedLayer, x: Tensor, w: Tensor, expected: NDArray[np.float32], kernel: str
) -> None:
    """In training, evaluation, and frozen; scales are 1 where the codes are the numbers themselves."""
    with torch.no_grad():
        layer.weight.copy_(w)
    assert torch.equal(layer.quantized().codes, w.to(torch.int8))
    layer.set_backend(KERNELS.get(kernel).backend)
    answers = [layer(x.float()), layer.eval()(x.float())]
    answers += [freeze_layer(layer, "auto", KERNELS.get(kernel))(x.float())]
    for y in answers:
        assert np.array_equal(y.detach().numpy(), expected)


def test_gradients_do_not_know_how_wide_a_sum_is(make_quantizer: Make) -> None:
    layer = BitLinear(nn.Linear(2_000, 6), make_quantizer("int", **EIGHT_BITS))
    assert layer.spec.wide
    assert_equals_textbook(layer, torch.randn(4, 2_000))
