"""Weights of several bits: tables, a range by the least error, DoReFa's, and a latent for each bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from torch import Tensor, nn
from torch.testing import assert_close
from torchao.prototype.custom_fp_utils import _f32_to_floatx_unpacked, _floatx_unpacked_to_f32

from bitexp.quant import WEIGHTS, BitLinear
from bitexp.quant.options import LayerOptions, complete
from bitexp.quant.spec import Part
from bitexp.quant.weights.codebook import TABLES, Codebook
from bitexp.quant.weights.int import Int


def gaussian(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def relative_error(weight: Tensor, dequantized: Tensor) -> float:
    return float((weight - dequantized).square().sum() / weight.square().sum())


# codebooks


def test_nf4_is_the_table_of_quantiles_of_its_paper() -> None:
    """Quantiles from 1 - (1/32 + 1/30) / 2 down, on both sides (arXiv 2305.14314, section 3)."""
    offset = 1 - (1 / 32 + 1 / 30) / 2
    above = [norm.ppf(offset + (0.5 - offset) * i / 8) for i in range(8)]
    below = [-norm.ppf(offset + (0.5 - offset) * i / 7) for i in range(7)]
    table = sorted([*above, 0.0, *below])
    assert TABLES["nf4"] == pytest.approx([value / max(table) for value in table], abs=2e-7)
    codes = [word[0] for word in Codebook(torch.ones(1, 1)).levels.words or ()]
    assert codes == [round(127 * value) for value in TABLES["nf4"]]


def test_fp4_rounds_as_the_e2m1_of_torchao() -> None:
    weight = gaussian(16, 64)
    part = Codebook(weight, values="fp4")
    assert [word[0] for word in part.levels.words or ()] == [
        -12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12,
    ]  # fmt: skip
    scaled = weight * (6 / weight.abs().amax(-1, keepdim=True))
    theirs = _floatx_unpacked_to_f32(_f32_to_floatx_unpacked(scaled, 2, 1), 2, 1)
    codes = part.quantize(weight).codes
    differing = codes != 2 * theirs  # but for numbers within a rounding of the middle
    assert float(differing.float().mean()) < 0.002
    assert_close(codes[~differing] / 2.0, theirs[~differing])


def test_the_error_on_gaussian_weights() -> None:
    """That of 3-bit floats in groups of 128 is published beside BitMoD (arXiv 2411.11745)."""
    weight = gaussian(512, 512)
    errors = {}
    for values in ("fp3", "fp4", "nf4"):
        part = Codebook(weight, values=values, granularity="group", group_size=128)
        errors[values] = relative_error(weight, part.quantize(weight).dequantized())
    integers = Int(weight, bits=4, granularity="group", group_size=128)
    assert errors["fp3"] == pytest.approx(0.0571, rel=0.01)
    assert errors["nf4"] < errors["fp4"] < relative_error(weight, integers.quantize(weight).dequantized())


@given(
    values=st.lists(st.floats(-2, 2), min_size=2, max_size=12, unique=True).filter(
        lambda values: len({round(127 * v / max(map(abs, values))) for v in values}) > 1
    ),
    seed=st.integers(0, 99),
)
def test_each_weight_gets_the_nearest_value_of_a_list(values: list[float], seed: int) -> None:
    weight = torch.randn(3, 20, generator=torch.Generator().manual_seed(seed))
    part = Codebook(weight, values=values)
    found = part.quantize(weight)
    allowed = torch.tensor([word[0] for word in part.levels.words or ()], dtype=torch.float64)
    distances = (weight.double()[..., None] / found.scale.double()[:, None, None] - allowed).abs()
    ours = (weight.double() / found.scale.double()[:, None] - found.codes).abs()
    assert bool((ours <= distances.amin(-1) + 1e-4).all())


def test_a_list_is_whole_numbers_where_it_can_be() -> None:
    assert Codebook(torch.ones(1, 1), values=[-1, -0.5, 0, 0.25, 0.5]).levels.words == (
        (-4,), (-2,), (0,), (1,), (2,),
    )  # fmt: skip
    third = Codebook(torch.ones(1, 1), values=[-1.0, 0.0, 0.301, 1.0]).levels.words
    assert third == ((-127,), (0,), (38,), (127,))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("nf5", "values=nf5 should be one of nf4, fp3, fp4, or a list of numbers"),
        ([0.0], "need a number other than zero"),
        ([], "need a number other than zero"),
        ([1.0, 1.0], "need two numbers that differ"),
    ],
)
def test_values_that_are_no_table_are_refused(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LayerOptions(Part("codebook", {"values": values}))


# integers


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_range_by_the_least_error_is_nearly_that_of_the_best_uniform_quantizer(bits: int) -> None:
    """Of Gaussian numbers that has an error of 0.1902 with three levels (Max, 1960)."""
    numbers, high = torch.from_numpy(norm.ppf((np.arange(2000) + 0.5) / 2000)), 2 ** (bits - 1) - 1

    def error(scale: float) -> float:
        return float(((numbers / scale).round().clamp(-high, high) * scale - numbers).square().mean())

    best = min(map(error, np.linspace(0.1, 1.5, 200)))
    if bits == 2:
        assert best == pytest.approx(0.1902, rel=0.01)
    weight = gaussian(256, 256)
    absmax, mse = (
        relative_error(weight, Int(weight, bits=bits, range=range).quantize(weight).dequantized())
        for range in ("absmax", "mse")
    )
    assert 0.9 * best < mse < 1.1 * best  # it is fitted to each row
    assert mse < 0.85 * absmax


@given(seed=st.integers(0, 99), bits=st.integers(2, 5))
def test_the_share_of_the_range_is_the_best_of_twenty(seed: int, bits: int) -> None:
    weight = torch.randn(1, 12, generator=torch.Generator().manual_seed(seed)) ** 3
    found = Int(weight, bits=bits, range="mse").quantize(weight)
    largest = float(weight.abs().max()) / (2 ** (bits - 1) - 1)
    errors = {}
    for share in range(1, 21):
        scale = largest * share / 20
        codes = (weight / scale).round().clamp(1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)
        errors[scale] = float((codes * scale - weight).square().sum())
    ours = float((found.dequantized() - weight).square().sum())
    assert ours == pytest.approx(min(errors.values()), rel=1e-4, abs=1e-9)


def test_an_option_that_came_later_is_said_only_where_it_is_another() -> None:
    """So that the ids of runs and the headers of files from before stay what they are."""
    assert complete("weights", "int") == Part(
        "int", {"bits": 4, "granularity": "channel", "group_size": None}
    )
    assert complete("weights", {"name": "int", "range": "absmax"}) == complete("weights", "int")
    changed = complete("weights", {"name": "int", "range": "mse"})
    assert changed is not None
    assert changed.options["range"] == "mse"


# DoReFa


@pytest.mark.parametrize("bits", [1, 2, 3, 7])
def test_dorefa_is_the_formula_of_its_paper(bits: int) -> None:
    weight = gaussian(12, 20)
    found = WEIGHTS.get("dorefa")(weight, bits=bits).quantize(weight)
    if bits == 1:
        expected = weight.sign() * weight.abs().mean()
    else:
        tanh, steps = weight.double().tanh(), 2**bits - 1
        normed = tanh / (2 * tanh.abs().max()) + 0.5
        expected = (2 * (normed * steps).round() / steps - 1).float()
    assert_close(found.dequantized(), expected, rtol=1e-5, atol=1e-6)
    assert not (found.codes % 2 == 0).any()


# a latent for each bit


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_bit_planes_begin_as_the_integers_of_the_weights(granularity: str, bits: int) -> None:
    weight = gaussian(12, 20)
    ours = WEIGHTS.get("bit_planes")(weight, bits=bits, granularity=granularity).quantize(weight)
    theirs = Int(weight, bits=bits, granularity=granularity).quantize(weight)  # type: ignore[arg-type]
    assert torch.equal(ours.codes, theirs.codes)
    assert_close(ours.scale, theirs.scale)


def test_a_latent_is_the_distance_to_where_its_bit_changes() -> None:
    weight = torch.tensor([[7.0, 2.75, -1.0, 0.2]])  # the scale is 1, the codes 7, 3, -1, 0
    part = WEIGHTS.get("bit_planes")(weight, bits=4)
    expected = [[0.5, 0.25, 0.5, -0.3], [0.5, 0.75, -0.5, -0.7], [0.5, -0.75, -1.5, -0.7]]
    latents = part.latents.detach().squeeze(1)
    assert_close(latents[0], torch.tensor(expected[0]), rtol=0, atol=1e-5)
    assert torch.equal(latents > 0, torch.tensor(expected) > 0)


@pytest.mark.parametrize("trained", [1, 2, 3])
def test_only_the_highest_bits_are_trained_where_so_many_are_named(trained: int) -> None:
    torch.manual_seed(0)
    layer = BitLinear(nn.Linear(20, 12), LayerOptions(Part("bit_planes", {"trained": trained})))
    part = layer.parts.weights
    before = layer.quantized().codes
    assert part.latents.shape == (trained, 12, 20)
    assert part.fixed.shape == (3 - trained, 12, 20)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        (layer(torch.randn(8, 20)) - 1).square().mean().backward()
        optimizer.step()
    after = layer.quantized().codes
    fixed = 2 ** (3 - trained)
    assert torch.equal(after.abs() % fixed, before.abs() % fixed)
    assert not torch.equal(after.abs() // fixed, before.abs() // fixed)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("bit_planes", {"bits": 9}, "bits=9 must be from 2 to 8"),
        ("bit_planes", {"trained": 4}, "trained=4 must be from 1 to the 3 bits"),
        ("dorefa", {"bits": 8}, "bits=8 must be from 1 to 7"),
        ("twn", {"threshold": 0.0}, "threshold=0.0 must be above 0"),
        ("ttq", {"threshold": 1.0}, "threshold=1.0 must be from 0 to below 1"),
        ("ttq", {"init": "two"}, "init=two should be 'mean' or 'one'"),
        ("tequila", {"share": -1.0}, "share=-1.0 must not be below 0"),
        ("sherry", {"arenas": -1.0}, "arenas=-1.0 must not be below 0"),
        ("sparse_ternary", {"keep": 9}, "keep=9 must be from 1 to block=8"),
        ("int", {"range": "min"}, "range=min should be 'absmax' or 'mse'"),
    ],
)
def test_options_out_of_range_are_refused(name: str, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        LayerOptions(Part(name, wrong))


def test_learned_state_of_every_kind_is_in_the_state_dict_and_stays_in_fp32() -> None:
    expected = {"ttq": {"positive", "negative"}, "dlt": {"alpha", "gamma"}, "seq": {"alpha"}}
    expected["bit_planes"] = {"latents", "fixed", "scales"}
    for name, names in expected.items():
        layer = BitLinear(nn.Linear(8, 4), LayerOptions(Part(name)))
        part = layer.parts.weights
        assert set(part.state_dict()) == names
        layer.bfloat16()
        assert {t.dtype for t in part.state_dict().values()} <= {torch.float32, torch.bool}
        assert layer(torch.randn(2, 8).bfloat16()).isfinite().all()
