"""The tokens of a corpus on disk: made once, atomically, memory-mapped by everyone after that.

    KEY/corpus.json      counts, digest, tokenizer, a checksum of all that
    KEY/train.tokens     ids one after the other, as uint8, uint16 or int32; likewise val and test

They decide about runs, so they are compared with the digest and the checksum before they are used.
A document is held out as a whole; a corpus of few documents is cut by position instead.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock, Timeout

from bitexp.common.console import counting
from bitexp.common.errors import UserError
from bitexp.common.files import read_json, write_json
from bitexp.data.base import PARTS, Part
from bitexp.data.cache import is_whole, sealed
from bitexp.data.text.tokenizers import Tokenizer

HELD: tuple[Part, ...] = ("test", "val")  # in the order in which they are held out
Documents = Callable[[Part], Iterator[str] | None]
"""The documents of a part, as often as asked; None for a part that is cut from the training text."""

FORMAT = 2  # 1: no checksum, and words of special tokens in a text were those tokens
FEW = 40  # documents: with fewer, a share of them says little about a share of the text
BATCH = 1_000_000  # characters that are encoded together


@dataclass(frozen=True)
class Corpus:
    """Tokens on disk."""

    folder: Path
    about: Mapping[str, Any]
    mended: bool = False
    """Whether it was found damaged, and was made again."""

    @property
    def digest(self) -> str:
        """A hash of all tokens and of the tokenizer."""
        return str(self.about["digest"])

    def tokens(self, part: Part) -> np.ndarray:
        """The ids of a part `[N]`, mapped from the disk."""
        count, path = self.about["tokens"][part], self.folder / f"{part}.tokens"
        if count == 0:  # an empty file cannot be mapped
            return np.empty(0, self.about["dtype"])
        return np.memmap(path, dtype=self.about["dtype"], mode="r", shape=(count,))

    def bytes_per_token(self, part: Part) -> float:
        """UTF-8 bytes of text that a token of this part stands for, on average; ends count one byte."""
        return float(self.about["bytes"][part] / self.about["tokens"][part])


def open_corpus(
    root: Path,
    key: str,
    documents: Documents,
    tokenizer: Callable[[Iterable[str]], Tokenizer],
    shares: Mapping[Part, float],
    title: str,
) -> Corpus:
    """The corpus under a key, made where it is not there yet: by one process, the others wait.

    Args:
        key: hash of all that decides about the tokens.
        tokenizer: makes the tokenizer, from the training documents where it has to be trained.
        shares: of `val` and `test` in the training text, where they are no documents of their own.

    Raises:
        UserError: the text cannot be read, or a part of it is empty.
    """
    folder = root / key
    if (corpus := existing(folder)) is not None:
        return corpus
    damaged = folder.exists() and not outdated(folder)
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{key}.lock"):
        if (corpus := existing(folder)) is not None:  # another process made it while this one waited
            return replace(corpus, mended=damaged)
        scrap = root / f"{key}.part"
        for old in (scrap, folder):  # of a process that was killed, or damaged since
            shutil.rmtree(old, ignore_errors=True)
        remove_scraps(root)
        scrap.mkdir()
        try:
            write_corpus(scrap, documents, tokenizer, shares, title)
            os.replace(scrap, folder)
        finally:
            shutil.rmtree(scrap, ignore_errors=True)
    corpus = existing(folder)
    assert corpus is not None
    return replace(corpus, mended=damaged)


def remove_scraps(root: Path) -> None:
    """Removes what killed processes have left of other corpora, which may be large and never be asked for."""
    for scrap in root.glob("*.part"):
        with contextlib.suppress(Timeout, OSError), FileLock(scrap.with_suffix(".lock"), timeout=0):
            shutil.rmtree(scrap, ignore_errors=True)


def existing(folder: Path) -> Corpus | None:
    """The corpus in a folder, if it is what was written there; its tokens are read once for that."""
    about = read_json(folder / "corpus.json")
    if not is_whole(about) or about.get("format") != FORMAT:
        return None
    sums: list[bytes] = []
    for part in PARTS:
        try:
            with (folder / f"{part}.tokens").open("rb") as file:
                sums.append(hashlib.file_digest(file, checksum).digest())
        except FileNotFoundError:
            return None
    return Corpus(folder, about) if about["digest"] == digest(about["tokenizer"], sums) else None


def outdated(folder: Path) -> bool:
    """Whether the corpus in a folder is of another version of bitexp."""
    about = read_json(folder / "corpus.json")
    return isinstance(about, dict) and about.get("format") != FORMAT


def checksum() -> hashlib.blake2b:
    """A new checksum for the tokens of a part."""
    return hashlib.blake2b(digest_size=16)


def digest(tokenizer: str, sums: Iterable[bytes]) -> str:
    """A hash of a tokenizer and of the checksums of all parts."""
    return hashlib.blake2b(b"".join([tokenizer.encode(), *sums]), digest_size=16).hexdigest()


def write_corpus(
    folder: Path,
    documents: Documents,
    make_tokenizer: Callable[[Iterable[str]], Tokenizer],
    shares: Mapping[Part, float],
    title: str,
) -> None:
    """Writes the tokens of all parts, and `corpus.json` last."""
    with counting(f"reading {title} for its tokenizer", "MB") as progress:
        tokenizer = make_tokenizer(training_texts(documents, shares, progress))
    dtype = smallest_dtype(tokenizer.size)
    sums = {part: checksum() for part in PARTS}
    counts, sizes, texts = (dict.fromkeys(PARTS, 0) for _ in range(3))
    end = np.array([tokenizer.end], dtype)
    with ExitStack() as stack:
        files: dict[Part, IO[bytes]] = {
            part: stack.enter_context((folder / f"{part}.tokens").open("wb")) for part in PARTS
        }
        progress = stack.enter_context(counting(f"reading {title}", "MB"))
        for part, batch in batched(parted(documents, shares)):
            for text, ids in zip(batch, tokenizer.encode(batch), strict=True):
                content = np.concatenate([ids.astype(dtype), end]).tobytes()
                files[part].write(content)
                sums[part].update(content)
                counts[part] += len(ids) + 1
                sizes[part] += len(text.encode()) + 1
                texts[part] += 1
            progress(sum(sizes.values()) / 1e6)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    about = {
        "format": FORMAT,
        "title": title,
        "digest": digest(tokenizer.to_json(), [sums[part].digest() for part in PARTS]),
        "dtype": dtype.name,
        "tokens": counts,
        "bytes": sizes,
        "documents": texts,
        "tokenizer": tokenizer.to_json(),
    }
    write_json(folder / "corpus.json", sealed(about))


def training_texts(
    documents: Documents, shares: Mapping[Part, float], progress: Callable[[float], None]
) -> Iterator[str]:
    """The texts that a tokenizer may learn from."""
    seen = 0
    for part, text in parted(documents, shares):
        if part == "train":
            seen += len(text)
            progress(seen / 1e6)
            yield text


def smallest_dtype(size: int) -> np.dtype[Any]:
    """The narrowest integer type that holds the ids below `size`."""
    kind: type = np.uint8 if size <= 1 << 8 else np.uint16 if size <= 1 << 16 else np.int32
    return np.dtype(kind)


def parted(documents: Documents, shares: Mapping[Part, float]) -> Iterator[tuple[Part, str]]:
    """Every text with the part it belongs to.

    Parts without documents of their own take an even selection of the training documents, `test` first;
    of fewer than 40 documents, the end of their text.
    """
    cuts = {part: shares[part] for part in HELD if documents(part) is None}
    source = (text for text in documents("train") or () if text)
    first = list(itertools.islice(source, FEW))
    if len(first) < FEW:
        yield from cut(first, cuts)
    else:
        for number, text in enumerate(itertools.chain(first, source)):
            yield choose_part(number, cuts), text
    for part in HELD:
        if part not in cuts:
            yield from ((part, text) for text in documents(part) or () if text)


def choose_part(number: int, shares: Mapping[Part, float]) -> Part:
    """The part of a document: of every 1 / share documents the last is held out, for each part in turn."""
    for part, share in shares.items():
        if int((number + 1) * share) > int(number * share):
            return part
        number -= int(number * share)  # its number among the rest
    return "train"


def cut(texts: list[str], shares: Mapping[Part, float]) -> Iterator[tuple[Part, str]]:
    """Cuts few documents by position: training text first, then the held-out parts."""
    left = sum(map(len, texts))
    edges: list[tuple[Part, int]] = []
    for part, share in shares.items():
        size = round(left * share)
        edges.append((part, size))
        left -= size
    bounds: list[tuple[Part, int]] = [("train", left), *reversed(edges)]
    for text in texts:
        while text and bounds:
            part, room = bounds[0]
            piece, text = text[:room], text[room:]
            if piece:
                yield part, piece
            bounds[0] = (part, room - len(piece))
            if bounds[0][1] <= 0:
                bounds.pop(0)


def batched(texts: Iterable[tuple[Part, str]]) -> Iterator[tuple[Part, list[str]]]:
    """Neighbours of one part together, up to about a million characters."""
    for part, group in itertools.groupby(texts, key=lambda item: item[0]):
        batch: list[str] = []
        size = 0
        for _, text in group:
            batch.append(text)
            size += len(text)
            if size >= BATCH:
                yield part, batch
                batch, size = [], 0
        if batch:
            yield part, batch


def check_length(corpus: Corpus, context: int, parts: Iterable[Part] = PARTS) -> None:
    """Raises `UserError` where a part has no room for one window of `context` tokens and the next one."""
    for part in parts:
        title, count = corpus.about["title"], corpus.about["tokens"][part]
        if count == 0:
            held = "" if part == "train" else f", or a larger data.{part}_size"
            raise UserError(f"the {part} part of {title} is empty; use more text{held}")
        if count <= context:
            raise UserError(
                f"the {part} part of {title} has {count:,} tokens, and data.context={context} needs at "
                f"least {context + 1:,}; use a smaller data.context or more text"
            )
