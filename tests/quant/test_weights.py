"""Every registered quantizer, by properties; the built-in ones against published figures and numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torch.testing import assert_close

from bitexp.deploy.packing import LAYOUTS, choose_layout
from bitexp.quant import QUANTIZERS, Quantizer
from bitexp.quant.layers import dequantize
from bitexp.quant.spec import EPS

NAMES = [name for name in QUANTIZERS.names() if QUANTIZERS.get(name).quantizes_weights]
ROUNDING = [name for name in NAMES if QUANTIZERS.get(name).codes is Quantizer.codes]
BUILT_IN = {"binary", "ternary_mean", "ternary_median"}

Make = Callable[..., Quantizer]

SIZES = st.tuples(st.integers(1, 7), st.integers(1, 40))
LATENTS = arrays(np.float32, SIZES, elements=st.floats(-8, 8, width=32, allow_subnormal=False)).map(
    torch.from_numpy
)
"""weights `[out, in]` of any kind: equal ones, zeros and ties included"""


def test_the_registry_holds_the_built_in_quantizers() -> None:
    assert set(NAMES) >= BUILT_IN
    assert set(ROUNDING) >= {"ternary_mean", "ternary_median"}
    assert {"full", "full_norm"}.isdisjoint(NAMES)


@pytest.mark.parametrize("name", NAMES)
@given(weight=LATENTS)
def test_codes_are_int8_within_the_declared_range_and_steps_are_positive(
    make_quantizer: Make, name: str, weight: Tensor
) -> None:
    quantizer = make_quantizer(name)
    codes, step = quantizer.weights(weight)
    assert codes.dtype == torch.int8
    assert codes.shape == weight.shape
    assert quantizer.low <= int(codes.min())
    assert int(codes.max()) <= quantizer.high
    assert step.dtype == torch.float32
    assert step.shape == ()
    assert float(EPS) <= float(step) * (1 + 1e-6)
    assert torch.isfinite(step)


@pytest.mark.parametrize("name", NAMES)
@given(weight=LATENTS)
def test_a_step_per_channel_is_the_quantizer_applied_to_each_row(
    make_quantizer: Make, name: str, weight: Tensor
) -> None:
    codes, steps = make_quantizer(name, granularity="channel").weights(weight)
    assert steps.shape == weight.shape[:1]
    quantizer = make_quantizer(name, granularity="tensor")
    for row, row_codes, row_step in zip(weight, codes, steps, strict=True):
        alone_codes, alone_step = quantizer.weights(row[None])
        assert torch.equal(row_codes[None], alone_codes)
        assert torch.equal(row_step, alone_step)


@pytest.mark.parametrize("name", NAMES)
@given(weight=LATENTS, groups=st.integers(1, 4))
def test_a_step_per_group_is_the_quantizer_applied_to_each_group(
    make_quantizer: Make, name: str, weight: Tensor, groups: int
) -> None:
    weight = weight.repeat(1, groups) + torch.arange(groups).repeat_interleave(weight.shape[1])
    size = weight.shape[1] // groups
    codes, steps = make_quantizer(name, granularity="group", group_size=size).weights(weight)
    assert steps.shape == (weight.shape[0], groups)
    quantizer = make_quantizer(name, granularity="tensor")
    for o, row in enumerate(weight):
        for g, group in enumerate(row.split(size)):
            alone_codes, alone_step = quantizer.weights(group[None])
            assert torch.equal(codes[o, g * size : (g + 1) * size], alone_codes[0])
            assert torch.equal(steps[o, g], alone_step)


@pytest.mark.parametrize("name", NAMES)
@given(weight=LATENTS, exponent=st.integers(-3, 3))
def test_scaled_weights_have_the_same_codes_and_a_scaled_step(
    make_quantizer: Make, name: str, weight: Tensor, exponent: int
) -> None:
    quantizer = make_quantizer(name)
    codes, step = quantizer.weights(weight)
    assume(float(step) > 16 * EPS)  # the floor of the step does not scale
    scaled_codes, scaled_step = quantizer.weights(weight * 2.0**exponent)
    assert torch.equal(scaled_codes, codes)
    assert torch.equal(scaled_step, step * 2.0**exponent)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("name", ROUNDING)
@given(weight=LATENTS)
def test_each_weight_goes_to_the_nearest_value_that_the_codes_allow(
    make_quantizer: Make, name: str, granularity: str, weight: Tensor
) -> None:
    quantizer = make_quantizer(name, granularity=granularity)
    codes, step = quantizer.weights(weight)
    allowed = torch.arange(quantizer.low, quantizer.high + 1, dtype=torch.float64)
    steps = step.double().reshape(-1, 1, 1)
    distance = (weight.double()[..., None] - allowed * steps).abs().amin(-1)
    ours = (weight.double() - dequantize(codes, step).double()).abs()
    assert bool((ours <= distance + 1e-6 * steps[..., 0]).all())


@pytest.mark.parametrize("name", NAMES)
@given(weight=LATENTS)
def test_codes_survive_packing_in_every_layout_that_holds_them(
    make_quantizer: Make, name: str, weight: Tensor
) -> None:
    quantizer = make_quantizer(name)
    codes, _ = quantizer.weights(weight)
    densest = choose_layout("auto", codes)
    for layout in LAYOUTS.values():
        try:
            packed = layout.pack(codes)
        except ValueError:
            assert layout is not LAYOUTS[densest]
        else:
            assert torch.equal(layout.unpack(packed, codes.shape[1]), codes)


@pytest.mark.parametrize("name", NAMES)
def test_no_layout_is_denser_than_the_bits_a_quantizer_declares(make_quantizer: Make, name: str) -> None:
    torch.manual_seed(0)
    quantizer = make_quantizer(name)
    codes, _ = quantizer.weights(torch.randn(64, 960))
    layout = LAYOUTS[choose_layout("auto", codes)]
    assert quantizer.bits <= 8 / layout.per_byte < quantizer.bits + 2


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("name", NAMES)
def test_all_zero_weights_get_the_floor_as_their_step(
    make_quantizer: Make, name: str, granularity: str
) -> None:
    codes, step = make_quantizer(name, granularity=granularity).weights(torch.zeros(3, 8))
    assert torch.equal(step, torch.full_like(step, 1e-5))
    if name in ROUNDING:
        assert not codes.any()


@pytest.mark.parametrize("name", NAMES)
def test_convolution_weights_are_quantized_like_their_flattened_rows(make_quantizer: Make, name: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 4, 3, 3)
    for granularity in ("tensor", "channel"):
        quantizer = make_quantizer(name, granularity=granularity)
        codes, step = quantizer.weights(weight)
        flat_codes, flat_step = quantizer.weights(weight.flatten(1))
        assert torch.equal(codes, flat_codes.reshape(weight.shape))
        assert torch.equal(step, flat_step)


@pytest.mark.parametrize("name", NAMES)
def test_bf16_weights_are_quantized_as_the_fp32_numbers_they_stand_for(
    make_quantizer: Make, name: str
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(32, 48).bfloat16()
    quantizer = make_quantizer(name)
    for ours, theirs in zip(quantizer.weights(weight), quantizer.weights(weight.float()), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_not_a_number_give_a_step_that_is_none_either(
    make_quantizer: Make, name: str
) -> None:
    weight = torch.ones(4, 8)
    weight[1, 2] = torch.nan
    assert make_quantizer(name).weights(weight)[1].isnan()
    steps = make_quantizer(name, granularity="channel").weights(weight)[1]
    assert steps.isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize(("name", "gaussian"), [("ternary_mean", 0.3096), ("ternary_median", 0.2635)])
def test_share_of_zeros_right_after_initialization(make_quantizer: Make, name: str, gaussian: float) -> None:
    """The figures that were measured for the code of arXiv 2407.09527."""
    torch.manual_seed(0)
    quantizer = make_quantizer(name)
    for weight, zeros in ((torch.randn(1000, 1000) * 0.02, gaussian), (torch.rand(1000, 1000) - 0.5, 0.25)):
        codes, _ = quantizer.weights(weight)
        assert float((codes == 0).float().mean()) == pytest.approx(zeros, abs=0.002)


@pytest.mark.parametrize("name", ["ternary_mean", "ternary_median"])
@given(weight=LATENTS)
def test_ternary_weights_equal_the_formula_in_numpy(make_quantizer: Make, name: str, weight: Tensor) -> None:
    codes, step = make_quantizer(name).weights(weight)
    magnitudes = np.sort(np.abs(weight.numpy()).astype(np.float64), axis=None)
    statistic = {
        "ternary_mean": magnitudes.mean(),
        "ternary_median": magnitudes[(magnitudes.size - 1) // 2],
    }[name]
    assert_close(step.double().item(), max(statistic, 1e-5), rtol=1e-6, atol=0)
    reciprocal = np.float32(1) / step.numpy()
    assert np.array_equal(codes.numpy(), np.clip(np.rint(weight.numpy() * reciprocal), -1, 1))


def test_the_reciprocal_of_the_step_is_multiplied_since_a_division_has_other_bits(
    make_quantizer: Make,
) -> None:
    step = torch.linspace(0.5, 4, 3000)
    weight = torch.stack([(step / 2).nextafter(step), step, step * 3], -1)
    codes, found = make_quantizer("ternary_median", granularity="channel").weights(weight)
    assert torch.equal(found, weight[:, 1])
    assert torch.equal(codes[:, 0], (weight[:, 0] * found.reciprocal()).round().to(torch.int8))
    assert not torch.equal(codes[:, 0], (weight[:, 0] / found).round().to(torch.int8))


@given(weight=LATENTS)
def test_binary_weights_are_the_signs_around_the_mean(make_quantizer: Make, weight: Tensor) -> None:
    codes, step = make_quantizer("binary").weights(weight)
    exact = weight.double()
    off = (exact - exact.mean()).abs() > 1e-5  # nearer to it the mean in fp32 may lie on either side
    assert torch.equal(codes[off].double(), (exact - exact.mean()).sign()[off])
    assert set(codes.unique().tolist()) <= {-1, 1}
    assert_close(step.double(), exact.abs().mean().clamp(min=1e-5), rtol=1e-6, atol=0)


def test_the_sign_of_zero_is_minus_one(make_quantizer: Make) -> None:
    quantizer = make_quantizer("binary")
    codes, step = quantizer.weights(torch.tensor([[-1.0, 0.0, 1.0]]))
    assert codes.tolist() == [[-1, -1, 1]]
    assert_close(step, torch.tensor(2 / 3))
    assert quantizer.weights(torch.full((2, 4), 3.0))[0].tolist() == [[-1] * 4] * 2


def test_binary_weights_are_centred_over_what_shares_a_step(make_quantizer: Make) -> None:
    weight = torch.tensor([[1.0, 2.0], [11.0, 12.0]])
    by_tensor = make_quantizer("binary").weights(weight)[0]
    by_channel = make_quantizer("binary", granularity="channel").weights(weight)[0]
    assert by_tensor.tolist() == [[-1, -1], [1, 1]]
    assert by_channel.tolist() == [[-1, 1], [-1, 1]]


def test_the_median_is_the_lower_of_two_middle_values(make_quantizer: Make) -> None:
    quantizer = make_quantizer("ternary_median")
    assert quantizer.weights(torch.tensor([[4.0, -1.0, 3.0, -2.0]]))[1].item() == 2.0
    assert quantizer.weights(torch.tensor([[4.0, -1.0, 3.0]]))[1].item() == 3.0


def test_halves_are_rounded_to_the_even_code(make_quantizer: Make) -> None:
    quantizer = make_quantizer("ternary_median")
    codes, step = quantizer.weights(torch.tensor([[1.0, 0.5, -0.5, 1.5, -1.5, 1.0, -1.0]]))
    assert step.item() == 1.0
    assert codes.tolist() == [[1, 0, 0, 1, -1, 1, -1]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"granularity": "group"}, "group_size=None"),
        ({"group_size": 8}, "granularity=tensor"),
        ({"granularity": "group", "group_size": 0}, "group_size=0"),
        ({"bias": "scaled", "activations": "none"}, "bias=scaled"),
        ({"bias": "scaled", "granularity": "channel"}, "bias=scaled"),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused(
    make_quantizer: Make, wrong: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_quantizer("ternary_mean", **wrong)


def test_a_group_size_that_does_not_divide_the_inputs_is_refused(make_quantizer: Make) -> None:
    quantizer = make_quantizer("ternary_mean", granularity="group", group_size=5)
    with pytest.raises(ValueError, match="group_size=5 does not divide the 8 inputs"):
        quantizer.weights(torch.ones(2, 8))
