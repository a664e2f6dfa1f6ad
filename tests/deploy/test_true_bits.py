"""The bytes of a packed file by method: those of its codes and of all that it has learned, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bitexp.deploy.frozen import FrozenLayer
from bitexp.deploy.packed_file import load_packed, read_packed, sizes
from bitexp.quant import WEIGHTS
from bitexp.quant.layers import quantized_layers
from bitexp.run.summary import packed_bytes
from tests.support.packed_files import REFERENCE, describe, write

ROWS, WEIGHTS_IN_ROWS = (24, 17), (64, 24)
"""Outputs and inputs of the two layers of the small network."""
BITS_AND_SCALES = {  # of a weight, padded rows left out; scales and shifts of the two layers
    "binary": (1, 2),
    "ternary_mean": (1.6, 2),
    "elastic_binary": (1, 41),
    "seq": (2, 41),
    "ttq": (1.6, 4),
    "dlt": (1.6, 82),
    "sherry": (1.25, 41),
    "dorefa": (2, 2),
    "bit_planes": (4, 41),
    "codebook": (4, 41),
}


@pytest.mark.parametrize("name", WEIGHTS.names())
def test_a_header_tells_the_bytes_that_the_file_has(name: str, tmp_path: Path) -> None:
    path = tmp_path / "packed.safetensors"
    model, x, expected = write(path, describe(quantizer="b158", weights={"name": name}))
    loaded, _ = load_packed(path, REFERENCE)
    assert torch.equal(loaded(x), expected)
    packings = {n: m.packing for n, m in loaded.named_modules() if isinstance(m, FrozenLayer)}
    layers = quantized_layers(model)
    told = sum(packed_bytes(layer, packings[n].layout) for n, layer in layers.items())
    body = sizes(read_packed(path))["body_bytes"]
    assert told == body
    if name in BITS_AND_SCALES:
        bits, scales = BITS_AND_SCALES[name]
        codes = body - 4 * scales
        exact = sum(rows * inputs for rows, inputs in zip(ROWS, WEIGHTS_IN_ROWS, strict=True)) * bits / 8
        assert exact <= codes <= exact + sum(ROWS) * 5  # each row ends with whole groups of bytes


@pytest.mark.parametrize(
    ("bits", "layout"), [(5, "pack8in5"), (6, "pack4in3"), (7, "pack8in7"), (8, "pack8")]
)
def test_integers_take_the_bits_that_they_have(bits: int, layout: str, tmp_path: Path) -> None:
    path = tmp_path / "packed.safetensors"
    _, x, expected = write(path, describe(quantizer="int", weights={"bits": bits}))
    loaded, _ = load_packed(path, REFERENCE)
    assert torch.equal(loaded(x), expected)
    assert {m.packing.name for m in loaded.modules() if isinstance(m, FrozenLayer)} == {layout}
    rows = sum(rows * -(-inputs * bits // 8) for rows, inputs in zip(ROWS, WEIGHTS_IN_ROWS, strict=True))
    assert sizes(read_packed(path))["body_bytes"] == rows + 4 * sum(ROWS)
