"""Packed bytes: round trips, density, what is refused, and the layouts against numpy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import Tensor

from bitexp.deploy.packing import LAYOUTS, choose_layout

BYTES_PER_CODE = {"pack1": 1 / 8, "pack5": 1 / 5, "pack2": 1 / 4, "pack4": 1 / 2, "pack8": 1}
VALUES = {
    "pack1": [-1, 1],
    "pack5": [-1, 0, 1],
    "pack2": [-1, 0, 1, 2],
    "pack4": list(range(-8, 8)),
    "pack8": list(range(-128, 128)),
}

Codes = NDArray[np.int8]


def padded(codes: Codes, per_byte: int, fill: int) -> Codes:
    """Codes `[rows, bytes, per_byte]`, short rows filled up."""
    missing = -codes.shape[1] % per_byte
    wide = np.pad(codes, ((0, 0), (0, missing)), constant_values=fill)
    return wide.reshape(len(codes), wide.shape[1] // per_byte, per_byte)


def numpy_pack1(codes: Codes) -> NDArray[np.uint8]:
    return np.packbits(codes > 0, axis=1, bitorder="little")


def numpy_pack2(codes: Codes) -> NDArray[np.uint8]:
    digits = (padded(codes, 4, -1) + 1).astype(np.uint8)
    return np.bitwise_or.reduce(digits << np.array([0, 2, 4, 6], np.uint8), axis=2)


def numpy_pack4(codes: Codes) -> NDArray[np.uint8]:
    digits = (padded(codes, 2, -8) + 8).astype(np.uint8)
    return digits[..., 0] | digits[..., 1] << 4


def numpy_pack5(codes: Codes) -> NDArray[np.uint8]:
    rows = [
        [sum((int(c) + 1) * 3**i for i, c in enumerate(five)) for five in row] for row in padded(codes, 5, -1)
    ]
    return np.array(rows, np.uint8).reshape(len(codes), -(-codes.shape[1] // 5))


def numpy_pack8(codes: Codes) -> NDArray[np.uint8]:
    return codes.view(np.uint8) ^ 0x80


NUMPY: dict[str, Callable[[Codes], NDArray[np.uint8]]] = {
    "pack1": numpy_pack1,
    "pack2": numpy_pack2,
    "pack4": numpy_pack4,
    "pack5": numpy_pack5,
    "pack8": numpy_pack8,
}


def codes_of(values: list[int], least: int = 0) -> st.SearchStrategy[Codes]:
    """int8 codes `[rows, inputs]` among the given values; from `least` rows and inputs on."""
    shapes = st.tuples(st.integers(least, 6), st.integers(least, 43))
    return arrays(np.int8, shapes, elements=st.sampled_from(values))


def test_the_tables_of_this_file_cover_every_layout() -> None:
    assert set(LAYOUTS) == set(BYTES_PER_CODE) == set(VALUES) == set(NUMPY)


@pytest.mark.parametrize("name", LAYOUTS)
@given(data=st.data())
def test_codes_come_back_and_bytes_equal_those_of_numpy(name: str, data: st.DataObject) -> None:
    codes = data.draw(codes_of(VALUES[name]))
    packed = LAYOUTS[name].pack(torch.from_numpy(codes))
    assert packed.dtype == torch.uint8
    assert packed.shape == (codes.shape[0], math.ceil(codes.shape[1] * BYTES_PER_CODE[name]))
    assert np.array_equal(packed.numpy(), NUMPY[name](codes))
    back = LAYOUTS[name].unpack(packed, codes.shape[1])
    assert back.dtype == torch.int8
    assert np.array_equal(back.numpy(), codes)


@pytest.mark.parametrize("name", LAYOUTS)
def test_long_rows_take_the_stated_bytes_per_code(name: str) -> None:
    codes = torch.tensor(VALUES[name], dtype=torch.int8).repeat(1, 4000)[:, :4000]
    assert LAYOUTS[name].pack(codes).numel() / codes.numel() == BYTES_PER_CODE[name]


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "pack8"])
@given(data=st.data())
def test_a_code_out_of_range_is_refused(name: str, data: st.DataObject) -> None:
    codes = data.draw(codes_of(VALUES[name], least=1))
    wrong = data.draw(st.integers(-128, 127).filter(lambda c: c not in VALUES[name]))
    codes.flat[data.draw(st.integers(0, codes.size - 1))] = wrong
    with pytest.raises(ValueError, match="do not fit a layout"):
        LAYOUTS[name].pack(torch.from_numpy(codes))


@given(byte=st.integers(243, 255), rows=st.integers(1, 4), inputs=st.integers(1, 30))
def test_a_byte_that_five_trits_cannot_make_is_refused(byte: int, rows: int, inputs: int) -> None:
    packed = LAYOUTS["pack5"].pack(torch.ones(rows, inputs, dtype=torch.int8))
    packed[-1, -1] = byte
    with pytest.raises(ValueError, match="damaged"):
        LAYOUTS["pack5"].unpack(packed, inputs)


@pytest.mark.parametrize("name", LAYOUTS)
@given(inputs=st.integers(1, 40), off=st.sampled_from([-1, 1]))
def test_rows_with_too_many_or_too_few_bytes_are_refused(name: str, inputs: int, off: int) -> None:
    width = math.ceil(inputs * BYTES_PER_CODE[name]) + off
    with pytest.raises(ValueError, match="bytes per row"):
        LAYOUTS[name].unpack(torch.zeros(3, width, dtype=torch.uint8), inputs)


@given(data=st.data())
def test_auto_is_the_densest_layout_that_holds_the_codes(data: st.DataObject) -> None:
    codes = torch.from_numpy(data.draw(codes_of(data.draw(st.sampled_from(list(VALUES.values()))))))
    values = set(codes.unique().tolist())
    fitting = [name for name, allowed in VALUES.items() if values <= set(allowed)]
    assert choose_layout("auto", codes) == min(fitting, key=BYTES_PER_CODE.__getitem__)


@pytest.mark.parametrize("name", LAYOUTS)
def test_codes_of_the_full_range_choose_their_own_layout(name: str) -> None:
    codes = torch.tensor(VALUES[name], dtype=torch.int8)
    assert choose_layout("auto", codes) == name
    assert choose_layout(name, codes) == name


def test_a_layout_that_cannot_hold_the_codes_is_refused() -> None:
    zero: Tensor = torch.zeros(2, 3, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"\[0\] do not fit the layout pack1"):
        choose_layout("pack1", zero)
    with pytest.raises(ValueError, match="do not fit the layout pack5"):
        choose_layout("pack5", torch.tensor([2], dtype=torch.int8))


def test_an_unknown_layout_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown layout 'pack_2'.*'pack2'"):
        choose_layout("pack_2", torch.zeros(1, dtype=torch.int8))
