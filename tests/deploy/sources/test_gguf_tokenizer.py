"""The tokenizer of a GGUF file gives the ids that llama.cpp gives."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from bitexp.data.text.tokenizers import load_tokenizer, train_bpe
from bitexp.deploy.engines.llama_cpp import Llama
from bitexp.deploy.exporters.writing import build, write
from bitexp.deploy.sources.gguf import Gguf
from tests.support.exports import described, packed

TEXTS = [
    "def f(x):\n\treturn 'A\u00e9\u4e2d \U0001f600' # don't, 12345 x_1 <|endoftext|>  ",
    "  two  spaces\r\n\r\n they'Re 7 8",
]


@pytest.mark.parametrize("split", ["bytes", "gpt-2", "llama-bpe", "qwen2"])
def test_ids_are_those_of_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str) -> None:
    text = "bytes" if split == "bytes" else train_bpe(TEXTS * 3, 320).to_json()
    if split != "bytes":
        add = gguf.GGUFWriter.add_tokenizer_pre
        monkeypatch.setattr(gguf.GGUFWriter, "add_tokenizer_pre", lambda writer, name: add(writer, split))
    size = load_tokenizer(text, "test").size
    write(
        build("gguf", {}),
        packed(tmp_path, described("full", vocabulary=size), {"tokenizer": text}),
        tmp_path / "out",
    )
    path = tmp_path / "out" / "model.gguf"
    found = Gguf(str(path)).tokenizer
    assert found is not None
    assert (found == "bytes") is (split == "bytes")
    tokenizer, llama = load_tokenizer(found, "test"), Llama(path)
    assert tokenizer.end == load_tokenizer(text, "test").end
    for given, ids in zip(TEXTS, tokenizer.encode(TEXTS), strict=True):
        assert ids.tolist() == llama.tokenize(given)


def test_texts_that_are_split_in_an_unknown_way_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = gguf.GGUFWriter.add_tokenizer_pre
    monkeypatch.setattr(gguf.GGUFWriter, "add_tokenizer_pre", lambda writer, name: add(writer, "viking"))
    source = packed(tmp_path, described("full"), {"tokenizer": "bytes"})
    write(build("gguf", {}), source, tmp_path / "out")
    assert Gguf(str(tmp_path / "out" / "model.gguf")).tokenizer is None
