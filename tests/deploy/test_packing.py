"""Packed bytes: round trips, density, what is refused, and the layouts against numpy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import Tensor

from bitexp.deploy.packing import FORMAT_1, LAYOUTS, Layout, choose_layout, layout_of
from bitexp.quant.levels import BINARY, TERNARY, Levels

GROUPS = {
    "pack1": (8, 1),
    "pack5": (5, 1),
    "pack2": (4, 1),
    "pack3": (8, 3),
    "pack4": (2, 1),
    "pack8in5": (8, 5),
    "pack4in3": (4, 3),
    "pack8in7": (8, 7),
    "pack8": (1, 1),
}
"""Codes and the bytes that they take together."""
BYTES_PER_CODE = {name: size / codes for name, (codes, size) in GROUPS.items()}
DIGITS = {"pack1": 2, "pack5": 3, "pack2": 4, "pack3": 8, "pack4": 16}
DIGITS |= {"pack8in5": 32, "pack4in3": 64, "pack8in7": 128, "pack8": 256}

Codes = NDArray[np.int8]
Digits = NDArray[np.uint8]


def grouped(digits: Digits, size: int) -> Digits:
    """Digits `[rows, groups, size]`, short rows filled up with zeros."""
    wide = np.pad(digits, ((0, 0), (0, -digits.shape[1] % size)))
    return wide.reshape(len(digits), wide.shape[1] // size, size)


def numpy_pack1(digits: Digits) -> Digits:
    return np.packbits(digits, axis=1, bitorder="little")


def numpy_pack2(digits: Digits) -> Digits:
    return np.bitwise_or.reduce(grouped(digits, 4) << np.array([0, 2, 4, 6], np.uint8), axis=2)


def numpy_bits(digits: Digits, size: int, count: int) -> Digits:
    """The `count` bits of each digit in a row, the lowest first, eight to a byte."""
    bits = np.unpackbits(grouped(digits, size)[..., None], axis=3, count=count, bitorder="little")
    return np.packbits(bits.reshape(len(digits), math.prod(bits.shape[1:])), axis=1, bitorder="little")


def numpy_pack4(digits: Digits) -> Digits:
    pairs = grouped(digits, 2)
    return pairs[..., 0] | pairs[..., 1] << 4


def numpy_pack5(digits: Digits) -> Digits:
    rows = [[sum(int(d) * 3**i for i, d in enumerate(five)) for five in row] for row in grouped(digits, 5)]
    return np.array(rows, np.uint8).reshape(len(digits), -(-digits.shape[1] // 5))


NUMPY: dict[str, Callable[[Digits], Digits]] = {
    "pack1": numpy_pack1,
    "pack2": numpy_pack2,
    "pack3": lambda digits: numpy_bits(digits, 8, 3),
    "pack8in5": lambda digits: numpy_bits(digits, 8, 5),
    "pack4in3": lambda digits: numpy_bits(digits, 4, 6),
    "pack8in7": lambda digits: numpy_bits(digits, 8, 7),
    "pack4": numpy_pack4,
    "pack5": numpy_pack5,
    "pack8": lambda digits: digits,
}


@st.composite
def levels_of(draw: st.DrawFn, most: int) -> Levels:
    """Any levels of int8 codes, at most so many."""
    count = draw(st.integers(2, most))
    stride = draw(st.integers(1, 255 // (count - 1)))
    low = draw(st.integers(-128, 127 - stride * (count - 1)))
    return Levels(low, low + stride * (count - 1), stride)


def values(levels: Levels) -> list[int]:
    return list(range(levels.low, levels.high + 1, levels.stride))


def codes_of(levels: Levels, least: int = 0) -> st.SearchStrategy[Codes]:
    """int8 codes `[rows, inputs]` of these levels; from `least` rows and inputs on."""
    shapes = st.tuples(st.integers(least, 6), st.integers(least, 43))
    return arrays(np.int8, shapes, elements=st.sampled_from(values(levels)))


def test_the_tables_of_this_file_cover_every_layout() -> None:
    assert set(LAYOUTS) == set(BYTES_PER_CODE) == set(DIGITS) == set(NUMPY)
    assert {name: layout.base for name, layout in LAYOUTS.items()} == DIGITS


@pytest.mark.parametrize("name", LAYOUTS)
@given(data=st.data())
def test_codes_of_any_levels_come_back_and_bytes_equal_those_of_numpy(name: str, data: st.DataObject) -> None:
    levels = data.draw(levels_of(DIGITS[name]))
    codes = data.draw(codes_of(levels))
    layout = layout_of(name, levels)
    packed = layout.pack(torch.from_numpy(codes))
    assert packed.dtype == torch.uint8
    assert packed.shape == (codes.shape[0], -(-codes.shape[1] // GROUPS[name][0]) * GROUPS[name][1])
    assert packed.shape == layout.packed_shape(*codes.shape)
    digits = (codes.astype(np.int64) - levels.low) // levels.stride
    assert np.array_equal(packed.numpy(), NUMPY[name](digits.astype(np.uint8)))
    back = layout.unpack(packed, codes.shape[1])
    assert back.dtype == torch.int8
    assert np.array_equal(back.numpy(), codes)


@pytest.mark.parametrize("name", LAYOUTS)
def test_long_rows_take_the_stated_bytes_per_code(name: str) -> None:
    levels = Levels(-1, DIGITS[name] - 2) if name != "pack8" else Levels.signed(8)
    codes = torch.tensor(values(levels), dtype=torch.int8).repeat(1, 4000)[:, :4000]
    layout = layout_of(name, levels)
    assert layout.pack(codes).numel() / codes.numel() == BYTES_PER_CODE[name] == layout.bits / 8


@pytest.mark.parametrize("name", LAYOUTS)
@given(data=st.data())
def test_a_code_that_is_no_digit_is_refused(name: str, data: st.DataObject) -> None:
    levels = data.draw(levels_of(DIGITS[name]))
    wrong = [code for code in range(-128, 128) if code not in values(levels)]
    if wrong:
        codes = data.draw(codes_of(levels, least=1))
        codes.flat[data.draw(st.integers(0, codes.size - 1))] = data.draw(st.sampled_from(wrong))
        with pytest.raises(ValueError, match="do not fit a layout"):
            layout_of(name, levels).pack(torch.from_numpy(codes))


@given(byte=st.integers(243, 255), rows=st.integers(1, 4), inputs=st.integers(1, 30))
def test_a_byte_that_five_trits_cannot_make_is_refused(byte: int, rows: int, inputs: int) -> None:
    layout = layout_of("pack5", TERNARY)
    packed = layout.pack(torch.ones(rows, inputs, dtype=torch.int8))
    packed[-1, -1] = byte
    with pytest.raises(ValueError, match="damaged"):
        layout.unpack(packed, inputs)


@given(data=st.data())
def test_a_digit_that_no_level_has_is_refused(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(LAYOUTS)))
    levels = data.draw(levels_of(DIGITS[name]))
    digit = data.draw(st.integers(0, DIGITS[name] - 1))
    packed = replace(layout_of(name, levels), count=None, low=0, stride=1).pack(digits_of(digit, name))
    if digit < levels.count:
        assert layout_of(name, levels).unpack(packed, 1).item() == levels.low + digit * levels.stride
    else:
        with pytest.raises(ValueError, match="damaged"):
            layout_of(name, levels).unpack(packed, 1)


def digits_of(digit: int, name: str) -> Tensor:
    """One digit as the code that a layout from 0 on would have for it."""
    return torch.tensor([[digit]], dtype=torch.int16 if name == "pack8" else torch.int8)


@pytest.mark.parametrize("name", LAYOUTS)
@given(inputs=st.integers(1, 40), off=st.sampled_from([-1, 1]))
def test_rows_with_too_many_or_too_few_bytes_are_refused(name: str, inputs: int, off: int) -> None:
    width = LAYOUTS[name].row_bytes(inputs) + off
    with pytest.raises(ValueError, match="bytes per row"):
        LAYOUTS[name].unpack(torch.zeros(3, width, dtype=torch.uint8), inputs)


@given(levels=levels_of(256))
def test_auto_is_the_densest_layout_that_holds_the_levels(levels: Levels) -> None:
    fitting = [name for name, digits in DIGITS.items() if digits >= levels.count]
    chosen = choose_layout("auto", levels)
    assert chosen == min(fitting, key=BYTES_PER_CODE.__getitem__)
    assert choose_layout(chosen, levels) == chosen
    assert levels.bits <= LAYOUTS[chosen].bits


@pytest.mark.parametrize("levels", [Levels(-2, 1), Levels.signed(2), Levels(-3, 3, 2)])
def test_four_levels_take_two_bits_wherever_they_lie(levels: Levels) -> None:
    assert choose_layout("auto", levels) == "pack2"
    codes = torch.tensor(values(levels), dtype=torch.int8).repeat(3, 5)
    layout = layout_of("pack2", levels)
    packed = layout.pack(codes)
    assert packed.tolist() == [[0b11_10_01_00] * 5] * 3
    assert torch.equal(layout.unpack(packed, 20), codes)


@pytest.mark.parametrize("name", LAYOUTS)
def test_codes_of_the_full_range_choose_their_own_layout(name: str) -> None:
    low = -DIGITS[name] // 2
    assert choose_layout("auto", Levels(low, low + DIGITS[name] - 1)) == name


SIGNS_AND_A_ZERO = Levels.of_words(
    (*signs[:zero], 0, *signs[zero:]) for zero in range(4) for signs in itertools.product((-1, 1), repeat=3)
)
WORDS = [
    (SIGNS_AND_A_ZERO, "pack8in5", 1.25, math.log2(32) / 4),
    (Levels.of_words([(0, 0), (1, 0), (0, -1)], planes=2), "pack5", 1.6, math.log2(3)),
    (Levels.of_words([(-7,), (0,), (1,), (5,), (100,)]), "pack3", 3.0, math.log2(5)),
]


@pytest.mark.parametrize(("levels", "name", "stored", "information"), WORDS)
@given(rows=st.integers(0, 4), inputs=st.integers(0, 70), seed=st.integers(0, 99))
def test_words_of_codes_are_the_digits(
    levels: Levels, name: str, stored: float, information: float, rows: int, inputs: int, seed: int
) -> None:
    assert choose_layout("auto", levels) == name
    layout = layout_of(name, levels)
    assert (levels.bits, layout.bits) == (pytest.approx(information), stored)
    assert levels.words is not None
    words = torch.tensor(levels.words, dtype=torch.int8)
    draw = torch.Generator().manual_seed(seed)
    digits = torch.randint(len(words), (rows, layout.row_digits(inputs)), generator=draw)
    codes = words[digits].flatten(1)[:, : inputs * levels.planes]
    if levels.planes > 1:
        codes = codes.unflatten(1, (-1, levels.planes)).movedim(-1, 0)
    packed = layout.pack(codes)
    assert packed.shape == layout.packed_shape(rows, inputs)
    unpacked = layout.unpack(packed, inputs)
    assert torch.equal(unpacked, codes)
    assert all(plane.is_contiguous() for plane in unpacked)  # products of others are far slower
    if inputs % layout.length == 0:
        assert np.array_equal(packed.numpy(), NUMPY[name](digits.numpy().astype(np.uint8)))


def test_a_word_that_is_cut_short_is_written_in_one_way() -> None:
    layout = layout_of("auto", SIGNS_AND_A_ZERO)
    assert SIGNS_AND_A_ZERO.words is not None
    (packed,) = layout.pack(torch.tensor([[1, 1, 0, 1, -1]], dtype=torch.int8))
    others = [d for d, word in enumerate(SIGNS_AND_A_ZERO.words) if word[0] == -1]
    first = int(packed[0] & 31)
    for digit in others:
        number = first + 32 * digit
        written = torch.tensor([[number % 256, number // 256, 0, 0, 0]], dtype=torch.uint8)
        if digit == others[0]:
            assert torch.equal(written[0], packed)
            continue
        with pytest.raises(ValueError, match="beyond the end of a row"):
            layout.unpack(written, 5)


def test_codes_that_are_no_word_and_digits_without_one_are_refused() -> None:
    layout = layout_of("auto", SIGNS_AND_A_ZERO)
    for wrong in ([1, 1, 1, 1], [1, 0, 0, 1], [1, 2, 0, 1], [1, 0, 1, 1, 0, 0]):
        with pytest.raises(ValueError, match="do not fit a layout for 32 words of 4 codes"):
            layout.pack(torch.tensor([wrong], dtype=torch.int8))
    few = Levels.of_words([(0,), (3,), (100,)])
    with pytest.raises(ValueError, match="damaged"):
        layout_of("pack2", few).unpack(torch.tensor([[3]], dtype=torch.uint8), 1)
    with pytest.raises(ValueError, match=r"the 32 words of 4 codes -1\.\.1 do not fit the layout pack5"):
        choose_layout("pack5", SIGNS_AND_A_ZERO)


BYTES_OF_FORMAT_1 = [
    ("pack1", BINARY, [-1, 1, 1, -1, -1, -1, -1, 1, 1], [0b10000110, 0b00000001]),
    ("pack5", TERNARY, [-1, 0, 1, 1, -1, 1], [0 + 3 + 18 + 54 + 0, 2]),
    ("pack2", TERNARY, [-1, 0, 1, 1, -1], [0b10_10_01_00, 0]),
]


@pytest.mark.parametrize(("name", "levels", "codes", "expected"), BYTES_OF_FORMAT_1)
def test_binary_and_ternary_weights_have_the_bytes_of_format_1(
    name: str, levels: Levels, codes: list[int], expected: list[int]
) -> None:
    row = torch.tensor([codes], dtype=torch.int8)
    layout = layout_of(name, levels)
    assert layout.pack(row).tolist() == [expected]
    assert replace(layout, count=None) == in_format_1(name)


def in_format_1(name: str) -> Layout:
    """A layout as format 1 has it."""
    low, stride = FORMAT_1[name]
    return replace(LAYOUTS[name], low=low, stride=stride)


@pytest.mark.parametrize("name", FORMAT_1)
@given(data=st.data())
def test_layouts_of_format_1_are_read_as_they_were_written(name: str, data: st.DataObject) -> None:
    ranges = {"pack1": [-1, 1], "pack5": [-1, 0, 1], "pack2": [-1, 0, 1, 2]}
    ranges |= {"pack4": list(range(-8, 8)), "pack8": list(range(-128, 128))}
    low, stride = ranges[name][0], ranges[name][1] - ranges[name][0]
    codes = data.draw(codes_of(Levels(low, ranges[name][-1], stride)))
    written = NUMPY[name](((codes.astype(np.int64) - low) // stride).astype(np.uint8))
    back = in_format_1(name).unpack(torch.from_numpy(written), codes.shape[1])
    assert np.array_equal(back.numpy(), codes)


def test_a_layout_that_cannot_hold_the_levels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the 3 codes -1\.\.1 do not fit the layout pack1"):
        choose_layout("pack1", TERNARY)
    with pytest.raises(ValueError, match=r"the 4 codes -3\.\.3 do not fit the layout pack5"):
        choose_layout("pack5", Levels(-3, 3, 2))
    with pytest.raises(ValueError, match=r"the 3 codes -1\.\.1 do not fit the layout pack1"):
        layout_of("pack1", TERNARY)


def test_an_unknown_layout_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown layout 'pack_2'.*'pack2'"):
        choose_layout("pack_2", TERNARY)


@pytest.mark.parametrize(
    "levels",
    [TERNARY, Levels.signed(3), Levels.of_words([(0, 0), (1, 0), (0, -1)], planes=2)],
    ids=["ternary", "3 bits", "planes"],
)
def test_rows_that_are_packed_apart_are_packed_as_together(
    monkeypatch: pytest.MonkeyPatch, levels: Levels
) -> None:
    draws = torch.Generator().manual_seed(0)
    layout = layout_of(choose_layout("auto", levels), levels)
    if levels.words is None:
        codes = torch.randint(levels.low, levels.high + 1, (7, 12), generator=draws).to(torch.int8)
    else:
        words = torch.tensor(levels.words, dtype=torch.int8)
        digits = torch.randint(len(words), (7, 12), generator=draws)
        codes = words[digits].flatten(1).unflatten(1, (-1, levels.planes)).movedim(-1, 0)
    together = layout.pack(codes)
    monkeypatch.setattr("bitexp.deploy.packing.PIECE", 30)
    assert torch.equal(layout.pack(codes), together)
    assert torch.equal(layout.unpack(together, codes.shape[-1]), codes)
