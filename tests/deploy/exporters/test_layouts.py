"""How codes lie in files of others, against the packages that define it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitexp.deploy.exporters.gguf_blocks import q1_0, tq1_0, tq2_0
from bitexp.deploy.exporters.tokenizer_files import byte_words
from bitexp.deploy.exporters.transformers_folder import pack_rows
from bitexp.deploy.sources.transformers import unpacked


@given(seed=st.integers(0, 2**31), rows=st.integers(1, 3), blocks=st.integers(1, 3))
@pytest.mark.parametrize(("pack", "name"), [(tq2_0, "TQ2_0"), (tq1_0, "TQ1_0")])
def test_ternary_blocks_are_those_of_gguf(
    pack: Callable[..., Any], name: str, seed: int, rows: int, blocks: int
) -> None:
    draw = np.random.default_rng(seed)
    codes = draw.integers(-1, 2, (rows, 256 * blocks)).astype(np.int8)
    codes[:, ::256] = 1  # the package takes the largest of a block as its scale
    scales = draw.uniform(0.01, 2, (rows, blocks)).astype(np.float16)
    kind = gguf.GGMLQuantizationType[name]
    expected = gguf.quants.quantize(codes * np.repeat(scales.astype(np.float32), 256, 1), kind)
    assert np.array_equal(pack(codes, scales), expected)
    assert np.array_equal(gguf.quants.dequantize(expected, kind), codes * np.repeat(scales, 256, 1))


def test_a_binary_block_is_a_scale_and_bits_from_the_lowest() -> None:
    codes = np.full((1, 128), -1, np.int8)
    codes[0, [0, 3, 127]] = 1
    packed = q1_0(codes, np.ones((1, 1), np.float16))
    assert packed.tolist() == [[0x00, 0x3C, 0b1001, *[0] * 14, 0x80]]


@given(seed=st.integers(0, 2**31), rows=st.integers(1, 5), inputs=st.integers(1, 9))
def test_rows_in_bytes_are_those_of_transformers(seed: int, rows: int, inputs: int) -> None:
    from transformers.integrations.bitnet import pack_weights, unpack_weights

    codes = torch.randint(-1, 2, (4 * rows, inputs), generator=torch.Generator().manual_seed(seed))
    packed = pack_rows(codes.to(torch.int8))
    assert torch.equal(packed, pack_weights(codes.clone()))
    assert torch.equal(unpacked(packed), codes.to(torch.int8))
    assert torch.equal(unpack_weights(packed, torch.float32), codes.float())


def test_the_words_of_bytes_are_gpt2s() -> None:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    theirs = bytes_to_unicode()
    assert byte_words()[1:] == [theirs[byte] for byte in range(1, 256)]
    assert byte_words()[0] != theirs[0]  # a text may hold that letter
