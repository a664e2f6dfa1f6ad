"""The integers that codes may be: what follows from low, high and stride."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitexp.quant.levels import BINARY, TERNARY, Levels

BITS = st.integers(2, 8)
LEVELS = st.builds(
    lambda low, stride, steps: Levels(low, low + stride * steps, stride),
    st.integers(-128, 127),
    st.integers(1, 16),
    st.integers(1, 300),
)


def values(levels: Levels) -> list[int]:
    return list(range(levels.low, levels.high + 1, levels.stride))


@given(levels=LEVELS)
def test_count_bits_and_the_largest_are_those_of_the_list(levels: Levels) -> None:
    assert values(levels)[-1] == levels.high
    assert levels.count == len(values(levels)) >= 2
    assert 2**levels.bits == pytest.approx(levels.count)
    assert levels.largest == max(map(abs, values(levels)))


@given(levels=LEVELS)
def test_equal_levels_are_one_value(levels: Levels) -> None:
    twin = Levels(levels.low, levels.high, levels.stride)
    assert twin == levels
    assert hash(twin) == hash(levels)
    assert Levels(levels.low, levels.high + levels.stride, levels.stride) != levels


@given(bits=BITS)
def test_signed_levels_are_those_of_twos_complement(bits: int) -> None:
    signed = Levels.signed(bits)
    assert signed.bits == bits
    assert {value & (2**bits - 1) for value in values(signed)} == set(range(2**bits))


@given(bits=BITS)
def test_each_symmetric_level_has_its_negative_and_one_code_is_unused(bits: int) -> None:
    symmetric = Levels.symmetric(bits)
    assert values(symmetric) == [-value for value in reversed(values(symmetric))]
    assert symmetric.count == 2**bits - 1
    assert math.ceil(symmetric.bits) == bits
    assert symmetric.high == Levels.signed(bits).high


def test_the_levels_of_the_bitnet_family() -> None:
    assert values(BINARY) == [-1, 1]
    assert values(TERNARY) == [-1, 0, 1]
    assert (BINARY.bits, BINARY.largest) == (1, 1)
    assert TERNARY.bits == math.log2(3)
    assert Levels.symmetric(2) == TERNARY
    assert Levels.signed(8) == Levels(-128, 127)


@given(low=st.integers(-20, 20), high=st.integers(-20, 20), stride=st.integers(-3, 7))
def test_what_is_no_whole_number_of_strides_is_refused(low: int, high: int, stride: int) -> None:
    steps = (high - low) / stride if stride else 0.0
    if stride >= 1 and steps >= 1 and steps.is_integer():
        Levels(low, high, stride)
        return
    with pytest.raises(ValueError, match=f"low={low}, high={high}, stride={stride} are no levels"):
        Levels(low, high, stride)


def test_words_are_of_known_codes_of_one_length_and_no_two_the_same() -> None:
    levels = Levels.of_words([(0, 0), (1, 0), (0, -1)], planes=2)
    assert (levels.low, levels.high, levels.count, levels.length) == (-1, 1, 3, 2)
    assert levels.bits == pytest.approx(math.log2(3))
    assert levels.to_json() == {
        "low": -1, "high": 1, "stride": 1, "words": ((0, 0), (1, 0), (0, -1)), "planes": 2,
    }  # fmt: skip
    assert TERNARY.to_json() == {"low": -1, "high": 1, "stride": 1}
    for wrong in ([(0,), (1, 0)], [(0,), (1,), (0,)], [(), ()]):
        with pytest.raises(ValueError, match=r"words|no levels"):
            Levels.of_words(wrong)
    with pytest.raises(ValueError, match="too long to tell apart"):
        Levels.of_words([[-127] * 8, [127] * 8])
    with pytest.raises(ValueError, match="must be made of the codes"):
        Levels(-1, 1, 2, words=((0,), (1,)))
