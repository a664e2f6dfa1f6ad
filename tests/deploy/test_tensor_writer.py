"""Files of tensors are written one tensor at a time, as safetensors reads them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from bitexp.deploy.tensor_writer import Made, write_tensors

TENSORS = {
    "odd": torch.arange(7, dtype=torch.uint8),
    "halves": torch.randn(3, 5).bfloat16(),
    "empty": torch.empty(0, 4),
    "scalar": torch.tensor(2.5),
    "long": torch.arange(5),
    "flags": torch.tensor([True, False, True]),
    "codes": torch.arange(-3, 6, dtype=torch.int8).reshape(3, 3),
    "fp16": torch.randn(9).half(),
}


def test_safetensors_reads_what_was_written(tmp_path: Path) -> None:
    asked: list[str] = []
    tensors = Made({name: lambda n=name, t=t: asked.append(n) or t for name, t in TENSORS.items()})  # type: ignore[misc]
    write_tensors(tmp_path / "x", tensors, {n: t.to("meta") for n, t in TENSORS.items()}, {"a": "b \u00e9"})
    assert sorted(asked) == sorted(TENSORS)
    found = load_file(tmp_path / "x")
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    content = (tmp_path / "x").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert header.pop("__metadata__") == {"a": "b \u00e9"}
    for name, entry in header.items():
        assert (8 + length + entry["data_offsets"][0]) % TENSORS[name].element_size() == 0
    assert len(content) - length == len(whole := save(TENSORS)) - struct.unpack("<Q", whole[:8])[0]


def test_a_file_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")

    def broken() -> torch.Tensor:
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        write_tensors(tmp_path / "x", Made({"a": broken}), {"a": torch.empty(3, device="meta")}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"
