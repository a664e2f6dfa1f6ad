"""The tokenizer of a language model in the forms of other engines.

Bytes are byte pairs without a merge: 256 characters of GPT-2's alphabet, in the order of the bytes, so that
an id is a byte. Id 0 ends a document and has its word; by the character of byte 0, U+0100, that letter in a
text would end it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitexp.common.files import write_atomic, write_json
from bitexp.data.text.tokenizers import END, load_tokenizer
from bitexp.deploy.exporters.exporter import InexpressibleError

BYTES = "bytes"
GPT2 = {"type": "ByteLevel"}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer by its ids.

    Args:
        words: by id; None where an id has no word. merges: pairs of words, in order. special: ids of special
            tokens. added: ids of words that were added besides.
    """

    words: list[str | None]
    merges: list[tuple[str, str]]
    special: set[int]
    added: set[int]
    end: int


def write_tokenizer(text: str, folder: Path, context: int) -> int:
    """Writes tokenizer.json and tokenizer_config.json for transformers; returns the id that ends a text.

    Args:
        text: as the packed file has it.
    """
    end = load_tokenizer(text, "the packed file").end
    content = bytes_json() if text == BYTES else json.loads(text)
    write_atomic(folder / "tokenizer.json", json.dumps(content, ensure_ascii=False).encode())
    word = next((t["content"] for t in content.get("added_tokens", []) if t["id"] == end), END)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": word,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # their words in a text are text, as here
    }
    write_json(folder / "tokenizer_config.json", config)
    return end


def bytes_json() -> dict[str, Any]:
    """tokenizer.json for bytes."""
    words = byte_words()
    end = {"id": 0, "content": END, "single_word": False, "lstrip": False, "rstrip": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{**end, "normalized": False, "special": True}],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {word: byte for byte, word in enumerate(words)},
            "merges": [],
        },
    }


def byte_words() -> list[str]:
    """The word of every byte: printable ones as they are, the others as U+0100 and up, and the end for 0."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    words = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    return [END, *words[1:]]


def vocabulary(text: str) -> Vocabulary:
    """A tokenizer by its ids, for llama.cpp.

    Raises:
        InexpressibleError: it does not split texts as GPT-2 does, which is what llama.cpp has a name for.
    """
    end = load_tokenizer(text, "the packed file").end
    if text == BYTES:
        words = byte_words()
        # one merge, since the key must be there: of two words that never stand beside each other
        return Vocabulary(list(words), [("\u0101", "\u0101")], {0}, set(), end)
    content = json.loads(text)
    check_gpt2(content)
    model = content["model"]
    by_id = {number: word for word, number in model["vocab"].items()}
    added = {token["id"]: token for token in content.get("added_tokens", [])}
    by_id |= {number: token["content"] for number, token in added.items()}
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    merges = [(str(first), str(second)) for first, second in pairs]
    special = {number for number, token in added.items() if token["special"]}
    words_by_id = [by_id.get(number) for number in range(1 + max(by_id))]
    return Vocabulary(words_by_id, merges, special, set(added) - special, end)


def check_gpt2(content: dict[str, Any]) -> None:
    """Raises `InexpressibleError` where a tokenizer.json is not byte pairs over texts split as GPT-2 does."""
    model, split = content.get("model") or {}, content.get("pre_tokenizer") or {}
    normal = content.get("normalizer") is None and model.get("type") == "BPE"
    plain = split.get("type") == "ByteLevel" and split.get("use_regex", True)
    if not (normal and plain and not split.get("add_prefix_space", True)):
        raise InexpressibleError(
            "llama.cpp knows the byte pairs of GPT-2's splitting alone, and this tokenizer has another; "
            "train with "
            "data.tokenizer=bytes or bpe"
        )
