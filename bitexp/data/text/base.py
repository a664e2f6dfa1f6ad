"""Text for language models: windows of tokens from a corpus on disk, in an order that can be resumed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitexp.common.checks import at_least, check_fraction
from bitexp.common.randomness import generator
from bitexp.data.base import PARTS, Data, Part
from bitexp.data.cache import cache_folder
from bitexp.data.loader import Batches, ResumableLoader
from bitexp.data.text.corpus import Corpus, check_length, open_corpus
from bitexp.data.text.tokenizers import (
    ByteTokenizer,
    Tokenizer,
    load_tokenizer,
    read_tokenizer,
    train_bpe,
)


class Windows(Batches):
    """Stretches of `context` tokens, one after the other, and the token that follows upon each.

    An item is a batch: (epoch, numbers of windows) -> inputs and targets, int64 `[B, context]`. With a
    `seed`, the windows of every epoch begin at another place.
    """

    def __init__(self, corpus: Corpus, part: Part, context: int, seed: int | None = None) -> None:
        self.corpus, self.part, self.context, self.seed = corpus, part, context, seed
        self.room = corpus.about["tokens"][part] - 1  # tokens that have one to follow
        self.shifts = seed is not None and self.room >= 2 * context

    @cached_property
    def tokens(self) -> np.ndarray:
        """The part's ids, mapped from the disk."""
        return self.corpus.tokens(self.part)

    def __getstate__(self) -> dict[str, Any]:
        """Without the map: each worker makes its own, instead of a copy of all tokens."""
        return {key: value for key, value in self.__dict__.items() if key != "tokens"}

    def __len__(self) -> int:
        return max(0, self.room // self.context - self.shifts)

    def __getitem__(self, request: tuple[int, list[int]]) -> tuple[Tensor, Tensor]:
        epoch, numbers = request
        starts = np.array(numbers)[:, None] * self.context + self.shift(epoch)
        ids = torch.from_numpy(self.tokens[starts + np.arange(self.context + 1)].astype(np.int64))
        return ids[:, :-1], ids[:, 1:]

    def shift(self, epoch: int) -> int:
        """Where the first window of an epoch begins."""
        if not self.shifts or self.seed is None:
            return 0
        return int(torch.randint(self.context, (), generator=generator("shift", self.seed, epoch)))


class TextData(Data):
    """Text cut into windows of `context` tokens; the network predicts the next token at every place.

    Batches are int64 inputs and targets `[B, context]`. A subclass gives documents and a key for them.

    Args:
        tokenizer: `bytes`, `bpe` (trained on the training text), or the path of a tokenizer.json.
        vocabulary: how many tokens `bpe` has; None with the others.
        context: tokens that the network sees at once.
        val_size, test_size: shares of the documents that are held out, where they have no files of their
            own; whole documents, evenly spread.
        val_windows: windows of the validation part that are looked at, evenly spread; None: all.
    """

    unit = "windows"

    def __init__(
        self,
        *,
        tokenizer: str,
        vocabulary: int | None,
        context: int,
        batch_size: int,
        eval_batch_size: int,
        val_size: float,
        test_size: float,
        val_windows: int | None,
        workers: int,
        seed: int,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, workers=workers, seed=seed)
        at_least("context", context, 1)
        check_fraction("val_size", val_size)
        check_fraction("test_size", test_size)
        if val_windows is not None:
            at_least("val_windows", val_windows, 1)
        if (tokenizer == "bpe") != (vocabulary is not None):
            raise ValueError(
                f"vocabulary={vocabulary} does not go with tokenizer={tokenizer}: it is the size of a "
                "tokenizer that is trained here, as in data.tokenizer=bpe data.vocabulary=8000"
            )
        if vocabulary is not None:
            at_least("vocabulary", vocabulary, 257)  # all bytes and the end of a text
        self.tokenizer, self.vocabulary, self.context = tokenizer, vocabulary, context
        self.shares: dict[Part, float] = {"val": val_size, "test": test_size}
        self.val_windows = val_windows

    def documents(self, part: Part) -> Iterator[str] | None:
        """The texts of a part; None where it is cut from the training text. Raises `UserError`."""
        raise NotImplementedError

    def content_key(self) -> str:
        """A hash of the texts, or of what names them for good."""
        raise NotImplementedError

    @cached_property
    def corpus(self) -> Corpus:
        """The tokens; read, encoded and kept on the first use."""
        content = self.content_key()
        parts = [content, self.tokenizer_key, self.shares["val"], self.shares["test"]]
        key = hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()
        corpus = open_corpus(
            cache_folder() / "tokens", key, self.documents, self.make_tokenizer, self.shares, self.describe()
        )
        validates = self.shares["val"] > 0 or self.documents("val") is not None
        check_length(corpus, self.context, [part for part in PARTS if part != "val" or validates])
        return corpus

    def describe(self) -> str:
        """What the corpus is, in a few words."""
        return self.title

    @property
    def tokenizer_key(self) -> str:
        """A name for the tokenizer that no other has."""
        if self.tokenizer in ("bytes", "bpe"):
            return f"{self.tokenizer}/{self.vocabulary}"
        return self.loaded_tokenizer.to_json()

    @cached_property
    def loaded_tokenizer(self) -> Tokenizer:
        """The tokenizer in the file that `tokenizer` names."""
        return read_tokenizer(Path(self.tokenizer).expanduser())

    def make_tokenizer(self, texts: Iterable[str]) -> Tokenizer:
        """The tokenizer, trained where it has to be."""
        if self.tokenizer == "bytes":
            return ByteTokenizer()
        return self.loaded_tokenizer if self.vocabulary is None else train_bpe(texts, self.vocabulary)

    def fingerprint(self) -> str:
        return self.corpus.digest

    @property
    def facts(self) -> dict[str, Any]:
        size = self.vocabulary or (256 if self.tokenizer == "bytes" else self.loaded_tokenizer.size)
        return {"vocabulary": size, "context": self.context}

    def example(self) -> Tensor:
        return torch.zeros(2, min(self.context, 8), dtype=torch.int64)

    @property
    def sizes(self) -> dict[str, int]:
        return {"train": len(self._train), "val": len(self._val_indices), "test": len(self._part("test"))}

    def preprocessing(self) -> dict[str, Any]:
        """The corpus in words, and its tokenizer as text for `load_tokenizer`."""
        about = self.corpus.about
        return {"corpus": about["title"], "documents": about["documents"], "tokenizer": about["tokenizer"]}

    @property
    def prompt(self) -> str:
        """The first two words of the held-out text: letters alone, so that a shell takes them as they are."""
        tokenizer = load_tokenizer(self.corpus.about["tokenizer"], self.corpus.folder)
        tokens = self.corpus.tokens("test")
        begin = "".join(tokenizer.stream(tokens[tokens != tokenizer.end][:64].tolist()))
        words = re.search(r"[^\W\d_]{2,}( [^\W\d_]+)?", begin)
        return f"{words[0]} " if words else ""

    def bytes_per_token(self, part: Part) -> float:
        """UTF-8 bytes that a token stands for, on average over a part."""
        return self.corpus.bytes_per_token(part)

    def remarks(self) -> str:
        about = self.corpus.about
        counts = " / ".join(f"{about['tokens'][part]:,}" for part in PARTS)
        mended = "; its kept tokens were damaged and have been made again" if self.corpus.mended else ""
        return f"{about['title']}; {counts} tokens ({self.tokenizer}), context {self.context}{mended}"

    @cached_property
    def _train(self) -> Windows:
        return self._part("train", self.seed)

    def _part(self, part: Part, seed: int | None = None) -> Windows:
        return Windows(self.corpus, part, self.context, seed)

    @property
    def _val_indices(self) -> Tensor:
        count = len(self._part("val"))
        looked_at = min(count, self.val_windows or count)
        return torch.arange(looked_at) * count // max(1, looked_at)

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled windows."""
        return self.training_loader(self._train, torch.arange(len(self._train)))

    def val_dataloader(self) -> ResumableLoader | list[ResumableLoader]:
        """Windows in order; no loader where nothing is held out."""
        indices = self._val_indices
        return self.evaluation_loader(self._part("val"), indices) if len(indices) else []

    def test_dataloader(self) -> ResumableLoader:
        """All windows in order."""
        windows = self._part("test")
        return self.evaluation_loader(windows, torch.arange(len(windows)))
