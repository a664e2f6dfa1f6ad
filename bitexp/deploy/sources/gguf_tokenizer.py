"""The tokenizer of a GGUF file as a tokenizer.json: byte pairs, texts split as the file names it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from bitexp.common.errors import UserError
from bitexp.data.text.tokenizers import load_tokenizer
from bitexp.deploy.exporters.tokenizer_files import BYTES, byte_words, bytes_json

SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    "gpt-2": None,
    "llama-bpe": SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + REST,
    "qwen2": SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + REST,
}
"""How texts are split before pairs are merged, by the words of llama.cpp; None: as GPT-2 does."""
CONTROL, USER = 3, 4
"""Kinds of tokens: special ones, and words that were added."""


def tokenizer_json(
    split: str, words: Sequence[str], kinds: Sequence[int], merges: Sequence[str]
) -> str | None:
    """The tokenizer as a packed file has it; None where texts are split in an unknown way, or never end.

    Args:
        split: llama.cpp's name for it. words: by id. merges: two words with a space between.
    """
    if split not in SPLITS:
        return None
    if list(words) == byte_words():
        return BYTES
    content: dict[str, Any] = bytes_json()
    content["added_tokens"] = [
        {**content["added_tokens"][0], "id": number, "content": words[number], "special": kind == CONTROL}
        for number, kind in enumerate(kinds)
        if kind in (CONTROL, USER)
    ]
    level = {**content["pre_tokenizer"], "use_regex": SPLITS[split] is None}
    if SPLITS[split] is not None:
        pieces = {
            "type": "Split",
            "pattern": {"Regex": SPLITS[split]},
            "behavior": "Isolated",
            "invert": False,
        }
        level = {"type": "Sequence", "pretokenizers": [pieces, level]}
    content["pre_tokenizer"] = level
    content["model"]["vocab"] = {word: number for number, word in enumerate(words)}
    content["model"]["merges"] = list(merges)
    text = json.dumps(content, ensure_ascii=False)
    try:
        load_tokenizer(text, "the file")
    except UserError:
        return None
    return text
