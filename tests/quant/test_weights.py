"""Every registered quantizer, by properties; the built-in ones against published figures and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torch.testing import assert_close

from bitexp.deploy.packing import LAYOUTS, choose_layout, layout_of
from bitexp.kernels import KERNELS
from bitexp.quant import WEIGHTS, WeightQuantizer
from bitexp.quant.product import Quantized
from bitexp.quant.spec import EPS
from bitexp.quant.weights.ternary import TernaryMean
from tests.support.kernels import every_kernel
from tests.support.quantizers import MakeQuantizer

NAMES = WEIGHTS.names()
ROUNDING = [name for name in NAMES if WEIGHTS.get(name).codes is WeightQuantizer.codes]
PROPORTIONAL = [name for name in NAMES if name != "dorefa"]
"""Those whose scale follows the weights; a tanh does not."""
BUILT_IN = {"binary", "ternary_mean", "ternary_median", "int", "lsq"}

any_name = st.sampled_from(NAMES)
EXAMPLES = settings(max_examples=5 * settings().max_examples)
"""Enough that each name has its share."""

SIZES = st.tuples(st.integers(1, 7), st.integers(1, 40))
LATENTS = arrays(np.float32, SIZES, elements=st.floats(-8, 8, width=32, allow_subnormal=False)).map(
    torch.from_numpy
)
"""weights `[out, in]` of any kind: equal ones, zeros and ties included"""


def made(name: str, weight: Tensor, granularity: str = "tensor", **options: object) -> WeightQuantizer:
    """A weight quantizer for these weights."""
    part: WeightQuantizer = WEIGHTS.get(name)(weight, granularity=granularity, **options)
    return part


def quantized(name: str, weight: Tensor, granularity: str = "tensor", **options: object) -> Quantized:
    """Weights by a quantizer that is made for them."""
    return made(name, weight, granularity, **options).quantize(weight)


def takes_groups(name: str, size: int) -> bool:
    """Whether weights may have a scale for each group of so many inputs."""
    try:
        made(name, torch.ones(1, size), "group", group_size=size)
    except (TypeError, ValueError):
        return False
    return True


GROUPED = [name for name in NAMES if takes_groups(name, 5)]


def test_the_registry_holds_the_built_in_quantizers() -> None:
    assert set(NAMES) >= BUILT_IN
    assert set(ROUNDING) >= {"ternary_mean", "ternary_median"}
    assert {"full", "full_norm"}.isdisjoint(NAMES)


@EXAMPLES
@given(name=any_name, weight=LATENTS)
def test_codes_are_int8_within_the_declared_range_and_steps_are_positive(name: str, weight: Tensor) -> None:
    part = made(name, weight)
    codes, step, shift = part.quantize(weight)
    assert codes.dtype == torch.int8
    planes = () if part.levels.planes == 1 else (part.levels.planes,)
    assert codes.shape == (*planes, *weight.shape)
    assert part.levels.low <= int(codes.min())
    assert int(codes.max()) <= part.levels.high
    assert not ((codes.int() - part.levels.low) % part.levels.stride).any()
    assert (shift is not None) == part.has_shift
    assert step.dtype == torch.float32
    assert step.shape == planes
    assert float(EPS) <= float(step.min()) * (1 + 1e-6)
    assert torch.isfinite(step).all()


@EXAMPLES
@given(name=any_name, weight=LATENTS)
def test_a_step_per_channel_is_the_quantizer_applied_to_each_row(name: str, weight: Tensor) -> None:
    codes, steps, _ = quantized(name, weight, "channel")
    assert steps.shape[-1:] == weight.shape[:1]
    rows = codes.movedim(-2, 0), steps.movedim(-1, 0)  # planes come before them
    for row, row_codes, row_step in zip(weight, *rows, strict=True):
        alone_codes, alone_step, _ = quantized(name, row[None])
        assert torch.equal(row_codes, alone_codes.squeeze(-2))
        assert torch.equal(row_step, alone_step)


@EXAMPLES
@given(name=st.sampled_from(GROUPED), weight=LATENTS, groups=st.integers(1, 4))
def test_a_step_per_group_is_the_quantizer_applied_to_each_group(
    name: str, weight: Tensor, groups: int
) -> None:
    weight = weight.repeat(1, groups) + torch.arange(groups).repeat_interleave(weight.shape[1])
    size = weight.shape[1] // groups
    codes, steps, _ = quantized(name, weight, "group", group_size=size)
    assert steps.shape == (weight.shape[0], groups)
    for o, row in enumerate(weight):
        for g, group in enumerate(row.split(size)):
            alone_codes, alone_step, _ = quantized(name, group[None])
            assert torch.equal(codes[o, g * size : (g + 1) * size], alone_codes[0])
            assert torch.equal(steps[o, g], alone_step)


@EXAMPLES
@given(name=st.sampled_from(PROPORTIONAL), weight=LATENTS, exponent=st.integers(-3, 3))
def test_scaled_weights_have_the_same_codes_and_a_scaled_step(
    name: str, weight: Tensor, exponent: int
) -> None:
    codes, step, _ = quantized(name, weight)
    assume(float(step.min()) > 16 * EPS)  # the floor of the step does not scale
    scaled_codes, scaled_step, _ = quantized(name, weight * 2.0**exponent)
    assert torch.equal(scaled_codes, codes)
    assert torch.equal(scaled_step, step * 2.0**exponent)


@EXAMPLES
@given(name=st.sampled_from(ROUNDING), granularity=st.sampled_from(["tensor", "channel"]), weight=LATENTS)
def test_each_weight_goes_to_the_nearest_value_that_the_codes_allow(
    name: str, granularity: str, weight: Tensor
) -> None:
    part = made(name, weight, granularity)
    found = part.quantize(weight)
    allowed = torch.arange(part.levels.low, part.levels.high + 1, part.levels.stride, dtype=torch.float64)
    steps = found.scale.double().reshape(-1, 1, 1)
    distance = (weight.double()[..., None] - allowed * steps).abs().amin(-1)
    ours = (weight.double() - found.dequantized().double()).abs()
    assert bool((ours <= distance + 1e-6 * steps[..., 0]).all())


@EXAMPLES
@given(name=any_name, weight=LATENTS)
def test_codes_survive_packing_in_every_layout_that_holds_them(name: str, weight: Tensor) -> None:
    part = made(name, weight)
    codes = part.quantize(weight).codes
    densest = choose_layout("auto", part.levels)
    for word in LAYOUTS:
        try:
            layout = layout_of(word, part.levels)
            packed = layout.pack(codes)
        except ValueError:
            assert word != densest
            assert LAYOUTS[word].base < part.levels.count
        else:
            assert torch.equal(layout.unpack(packed, codes.shape[-1]), codes)


@pytest.mark.parametrize("name", NAMES)
def test_no_layout_is_denser_than_the_bits_a_quantizer_declares(name: str) -> None:
    torch.manual_seed(0)
    part = made(name, torch.randn(64, 960))
    layout = layout_of("auto", part.levels)
    bits = part.levels.bits if part.bits is None else part.bits
    assert bits <= layout.bits < bits + 2


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("name", PROPORTIONAL)
def test_all_zero_weights_get_the_floor_as_their_step(name: str, granularity: str) -> None:
    codes, step, _ = quantized(name, torch.zeros(3, 8), granularity)
    assert torch.equal(step, torch.full_like(step, 1e-5))
    if name in ROUNDING:
        assert not codes.any()


@pytest.mark.parametrize("name", NAMES)
def test_convolution_weights_are_quantized_like_their_flattened_rows(name: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 4, 3, 3)
    for granularity in ("tensor", "channel"):
        codes, step, _ = quantized(name, weight, granularity)
        flat_codes, flat_step, _ = quantized(name, weight.flatten(1), granularity)
        assert torch.equal(codes, flat_codes.reshape(codes.shape))
        assert torch.equal(step, flat_step)


@pytest.mark.parametrize("name", NAMES)
def test_bf16_weights_are_quantized_as_the_fp32_numbers_they_stand_for(name: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(32, 48).bfloat16()
    ours, theirs = quantized(name, weight), quantized(name, weight.float())
    assert torch.equal(ours.codes, theirs.codes)
    assert torch.equal(ours.scale, theirs.scale)
    assert torch.equal(ours.dequantized(), theirs.dequantized())


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_not_a_number_give_a_step_that_is_none_either(name: str) -> None:
    weight = torch.ones(4, 8)
    weight[1, 2] = torch.nan
    assert quantized(name, weight).scale.isnan().any()
    steps = quantized(name, weight, "channel").scale.reshape(-1, 4)
    assert steps.isnan().any(0).tolist() == [False, True, False, False]


@pytest.mark.parametrize(("name", "gaussian"), [("ternary_mean", 0.3096), ("ternary_median", 0.2635)])
def test_share_of_zeros_right_after_initialization(name: str, gaussian: float) -> None:
    """The figures that were measured for the code of arXiv 2407.09527."""
    torch.manual_seed(0)
    for weight, zeros in ((torch.randn(1000, 1000) * 0.02, gaussian), (torch.rand(1000, 1000) - 0.5, 0.25)):
        codes = quantized(name, weight).codes
        assert float((codes == 0).float().mean()) == pytest.approx(zeros, abs=0.002)


@pytest.mark.parametrize("name", ["ternary_mean", "ternary_median"])
@given(weight=LATENTS)
def test_ternary_weights_equal_the_formula_in_numpy(name: str, weight: Tensor) -> None:
    codes, step, _ = quantized(name, weight)
    magnitudes = np.sort(np.abs(weight.numpy()).astype(np.float64), axis=None)
    statistic = {
        "ternary_mean": magnitudes.mean(),
        "ternary_median": magnitudes[(magnitudes.size - 1) // 2],
    }[name]
    assert_close(step.double().item(), max(statistic, 1e-5), rtol=1e-6, atol=0)
    reciprocal = np.float32(1) / step.numpy()
    assert np.array_equal(codes.numpy(), np.clip(np.rint(weight.numpy() * reciprocal), -1, 1))


def test_the_reciprocal_of_the_step_is_multiplied_since_a_division_has_other_bits() -> None:
    step = torch.linspace(0.5, 4, 3000)
    weight = torch.stack([(step / 2).nextafter(step), step, step * 3], -1)
    codes, found, _ = quantized("ternary_median", weight, "channel")
    assert torch.equal(found, weight[:, 1])
    assert torch.equal(codes[:, 0], (weight[:, 0] * found.reciprocal()).round().to(torch.int8))
    assert not torch.equal(codes[:, 0], (weight[:, 0] / found).round().to(torch.int8))


@given(weight=LATENTS)
def test_binary_weights_are_the_signs_around_the_mean(weight: Tensor) -> None:
    codes, step, _ = quantized("binary", weight)
    exact = weight.double()
    off = (exact - exact.mean()).abs() > 1e-5  # nearer to it the mean in fp32 may lie on either side
    assert torch.equal(codes[off].double(), (exact - exact.mean()).sign()[off])
    assert set(codes.unique().tolist()) <= {-1, 1}
    assert_close(step.double(), exact.abs().mean().clamp(min=1e-5), rtol=1e-6, atol=0)


def test_the_sign_of_zero_is_minus_one() -> None:
    codes, step, _ = quantized("binary", torch.tensor([[-1.0, 0.0, 1.0]]))
    assert codes.tolist() == [[-1, -1, 1]]
    assert_close(step, torch.tensor(2 / 3))
    assert quantized("binary", torch.full((2, 4), 3.0)).codes.tolist() == [[-1] * 4] * 2


def test_binary_weights_are_centred_over_what_shares_a_step() -> None:
    weight = torch.tensor([[1.0, 2.0], [11.0, 12.0]])
    by_tensor = quantized("binary", weight).codes
    by_channel = quantized("binary", weight, "channel").codes
    assert by_tensor.tolist() == [[-1, -1], [1, 1]]
    assert by_channel.tolist() == [[-1, 1], [-1, 1]]


def test_the_median_is_the_lower_of_two_middle_values() -> None:
    assert quantized("ternary_median", torch.tensor([[4.0, -1.0, 3.0, -2.0]])).scale.item() == 2.0
    assert quantized("ternary_median", torch.tensor([[4.0, -1.0, 3.0]])).scale.item() == 3.0


def test_halves_are_rounded_to_the_even_code() -> None:
    codes, step, _ = quantized("ternary_median", torch.tensor([[1.0, 0.5, -0.5, 1.5, -1.5, 1.0, -1.0]]))
    assert step.item() == 1.0
    assert codes.tolist() == [[1, 0, 0, 1, -1, 1, -1]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weights": {"granularity": "group"}}, "group_size=None"),
        ({"weights": {"group_size": 8}}, "granularity=tensor"),
        ({"weights": {"granularity": "group", "group_size": 0}}, "group_size=0"),
        ({"bias": "scaled", "activations": "none"}, "bias=scaled"),
        ({"bias": "scaled", "weights": {"granularity": "channel"}}, "bias=scaled"),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused(
    make_quantizer: MakeQuantizer, wrong: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_quantizer("ternary_mean", **wrong)


def test_a_group_size_that_does_not_divide_the_inputs_is_refused() -> None:
    with pytest.raises(ValueError, match="group_size=5 does not divide the 8 inputs"):
        quantized("ternary_mean", torch.ones(2, 8), "group", group_size=5)


AT_ONCE = [name for name in NAMES if "at_once" in vars(WEIGHTS.get(name))]


@pytest.mark.parametrize("name", AT_ONCE)
@every_kernel
def test_what_a_method_computes_at_once_is_what_its_parts_give(name: str, kernel: str) -> None:
    """A subclass computes by `scale`, `codes` and their like, also where it overrides none of them."""
    method = WEIGHTS.get(name)
    by_parts = type("ByParts", (method,), {})
    weight = torch.nn.Parameter(torch.randn(6, 96))
    for options in ({}, {"granularity": "channel"}, {"granularity": "group", "group_size": 32}):
        whole, parts = method(weight, **options), by_parts(weight, **options)
        assert whole.whole
        assert not parts.whole
        whole.backend = parts.backend = KERNELS.get(kernel).backend
        for found, expected in zip(whole.quantize(weight)[:2], parts.quantize(weight)[:2], strict=True):
            assert torch.equal(found, expected)
            assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


@pytest.mark.parametrize("training", [False, True])
def test_a_subclass_computes_by_what_it_overrides(training: bool) -> None:
    class Half(TernaryMean):
        def scale(self, rows: Tensor) -> Tensor:
            return super().scale(rows) / 2

    weight = torch.randn(4, 64)
    found, whole = Half(weight).quantize(weight, training), TernaryMean(weight).quantize(weight, training)
    assert torch.equal(found.scale, whole.scale / 2)
    assert torch.equal(found.codes, Half(weight).codes(weight.reshape(1, -1), found.scale).view(4, 64))
    assert not torch.equal(found.codes, whole.codes)
