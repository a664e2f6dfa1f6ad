"""An exported folder is complete for the hub: a card with metadata that it reads, configs, a tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from bitexp.deploy.exporters.writing import build, write
from tests.support.exports import PORTABLE, described, packed

FILES = {
    "transformers": {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    },
    "gguf": {"model.gguf"},
    "c": {"model.c", "model.h", "test.c"},
}  # fmt: skip


@pytest.mark.parametrize("target", FILES)
def test_a_folder_can_be_published(tmp_path: Path, target: str) -> None:
    source = packed(tmp_path, described("b158", **PORTABLE))
    write(build(target, {"license": "apache-2.0"}), source, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES[target] | {"README.md"}
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "apache-2.0"
    assert "bitexp" in card.data.tags
    assert card.text.lstrip().startswith("# packed, for ")
    if target != "c":
        assert card.data.pipeline_tag == "text-generation"
