"""Tokenizers: bytes as they are, or byte pairs by the library `tokenizers`, trained here or loaded.

Every document ends with one token of its own: the byte 0, or a special token. No text holds it: the words of
special tokens are read as text, and the character U+0000 becomes U+FFFD where tokens are bytes.
"""

from __future__ import annotations

import codecs
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bitexp.common.errors import UserError, is_of_the_machine
from bitexp.common.spelling import nearest

END = "<|endoftext|>"
ENDS = (END, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")  # what published tokenizers end a text with
TRAINED_ON = 200_000_000  # characters: more text moves few merges and costs minutes


class Tokenizer(Protocol):
    """Text to token ids and back."""

    size: int
    """How many ids there are."""
    end: int
    """The id that ends a document."""

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, without the end, which no text can bring about."""

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of ids, piece by piece as they come; it stops at the end of a document."""

    def to_json(self) -> str:
        """All of it as text, for `load_tokenizer`."""


class ByteTokenizer:
    """UTF-8 bytes: 256 ids, no training, no unknown text."""

    size = 256
    end = 0

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.replace("\0", "\ufffd").encode(), np.uint8) for text in texts]

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in ids:
            if token == self.end:
                break
            yield decoder.decode(bytes([min(token, 255)]))  # of a model with more ids; no text holds 255
        yield decoder.decode(b"", final=True)

    def to_json(self) -> str:
        return "bytes"


class TokenizersTokenizer:
    """A tokenizer of the library `tokenizers`."""

    def __init__(self, inner: Any, origin: object) -> None:
        inner.no_truncation()  # published files may cut texts to the length of a model, or fill them up
        inner.no_padding()
        self.inner, self.origin = inner, origin
        self.size = 1 + max(inner.get_vocab().values(), default=-1)  # ids may have gaps
        ids = [inner.token_to_id(word) for word in ENDS]
        ends = [token for token in ids if token is not None]
        if not ends:
            raise UserError(f"{origin} has no token that ends a text. Known: {', '.join(ENDS)}")
        self.end: int = ends[0]
        added = inner.get_added_tokens_decoder().get(self.end)
        if added is not None and not added.special:  # such a word is found in texts whatever is set below
            inner.add_special_tokens([added.content])
        inner.encode_special_tokens = True  # as the text they are; not part of the file, set on every loading

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, without the end. Raises `UserError` where a text cannot do without it."""
        encodings = self.inner.encode_batch(list(texts), add_special_tokens=False)
        for text, encoding in zip(texts, encodings, strict=True):
            if self.end in encoding.ids:  # a vocabulary of whole words may have it
                raise UserError(
                    f"{self.origin} knows the word '{self.inner.id_to_token(self.end)}' only as the end of a "
                    f"text, and it stands in the text '{textwrap.shorten(text, 80)}'. Replace it there, or "
                    "use another tokenizer"
                )
        return [np.array(encoding.ids, np.int64) for encoding in encodings]

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        from tokenizers.decoders import DecodeStream

        decoder = DecodeStream(skip_special_tokens=True)
        held: list[int] = []
        for token in ids:
            if token == self.end:
                break
            piece = decoder.step(self.inner, token)  # None: the bytes so far are no whole character
            held = [*held, token] if piece is None else []
            yield piece or ""
        yield self.inner.decode(held)

    def to_json(self) -> str:
        return str(self.inner.to_str())


def load_tokenizer(text: str, origin: object) -> Tokenizer:
    """A tokenizer from `Tokenizer.to_json`, or from the content of a tokenizer.json.

    Raises:
        UserError: the library is missing, or it cannot read the text.
    """
    if text == "bytes":
        return ByteTokenizer()
    try:
        return TokenizersTokenizer(library().Tokenizer.from_str(text), origin)
    except UserError:
        raise
    except Exception as error:  # the library raises bare exceptions
        if is_of_the_machine(error):
            raise
        raise UserError(f"{origin} is not a tokenizer.json: {error}") from None


def read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer from a file tokenizer.json. Raises `UserError` where there is none."""
    try:
        return load_tokenizer(path.read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the tokenizer {path} cannot be read: {error}.{nearest(str(path), ['bytes', 'bpe'])} "
            "Known: bytes, bpe, or the path of a tokenizer.json"
        ) from None


def train_bpe(documents: Iterable[str], size: int) -> Tokenizer:
    """Byte-pair encoding over bytes (as in GPT-2), trained on the first 200 million characters.

    Raises:
        UserError: the library is missing.
    """
    tokenizers = library()
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(first_characters(documents, TRAINED_ON), trainer)
    return TokenizersTokenizer(inner, "the trained tokenizer")


def first_characters(documents: Iterable[str], limit: int) -> Iterator[str]:
    """Whole documents until `limit` characters were seen."""
    seen = 0
    for document in documents:
        yield document
        seen += len(document)
        if seen >= limit:
            return


def library() -> Any:
    """The package `tokenizers`. Raises `UserError` saying how to get it."""
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            'byte pairs need the package tokenizers: pip install "bitexp[text]", or use data.tokenizer=bytes'
        ) from None
    return tokenizers
