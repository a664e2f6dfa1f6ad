"""The layout of packed weights: where each code lies, in how few bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitexp.kernels.cpu import layout
from tests.support.cpu_kernel import RANGES, case


@given(
    kind=st.sampled_from(list(RANGES)),
    outputs=st.integers(1, 130),
    inputs=st.integers(1, 100),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_layout_holds_the_codes(kind: str, outputs: int, inputs: int, seed: int) -> None:
    _, codes, _, _ = case(kind, 1, inputs, outputs, False, False, seed)
    found = layout.digits_of(codes)
    assert found is not None
    bits, digits = found
    packed = layout.pack(digits, bits)
    assert packed.shape == (-(-outputs // 64), -(-inputs * bits // 32), 256)
    assert torch.equal(layout.unpack(packed, bits, outputs, inputs), codes)


def test_a_byte_of_the_layout_is_where_it_is_said_to_be() -> None:
    """Output 70, input 21 in two bits: stream 1, block 1, panel 0, group 1, byte 4 * 6 + 1."""
    codes = torch.full((128, 32), -1, dtype=torch.int8)
    codes[70, 21] = 1
    found = layout.digits_of(codes * 1 + (codes == 1) * 1)  # 2 where it was 1: two bits
    assert found is not None
    packed = layout.pack(found[1], found[0])
    (place,) = packed.nonzero().tolist()
    assert place == [1, 1, 25]
    assert int(packed[1, 1, 25]) == 3 << 2


@pytest.mark.parametrize(
    ("codes", "bits"),
    [([-1, 1], 1), ([1, 1], 1), ([-1, 0], 2), ([0, 0], 2), ([-1, 2], 2), ([-2, 1], 4), ([-8, 7], 4)],
)
def test_codes_take_the_fewest_bits(codes: list[int], bits: int) -> None:
    found = layout.digits_of(torch.tensor([codes], dtype=torch.int8))
    assert found is not None
    assert found[0] == bits


def test_codes_of_more_than_four_bits_have_no_layout() -> None:
    assert layout.digits_of(torch.tensor([[-9, 0]], dtype=torch.int8)) is None
    assert layout.digits_of(torch.tensor([[8, 0]], dtype=torch.int8)) is None
