"""The logits of a teacher for a whole training part, computed once and kept on disk.

    KEY/about.json     what they are of, their shape, their digest, a checksum of all that
    KEY/logits.fp32    `[samples, ...]`, by the number of the sample

They decide about runs, so they are compared with digest and checksum before they are used.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from bitexp.common.console import counting
from bitexp.common.files import read_json, write_json
from bitexp.data.cache import cache_folder, is_whole, sealed

ABOUT, LOGITS = "about.json", "logits.fp32"


@dataclass(frozen=True)
class CachedLogits:
    """Logits on disk, mapped into memory."""

    logits: np.ndarray
    numbers: np.ndarray
    """Of the samples, ascending: the row of a sample is its place here."""
    mended: bool = False
    """Whether what was there before was found damaged."""

    def rows(self, numbers: list[int]) -> Tensor:
        """`[B, ...]`, fp32, of the samples with these numbers."""
        return torch.from_numpy(np.array(self.logits[np.searchsorted(self.numbers, numbers)]))


def open_logits(
    about: Mapping[str, Any],
    numbers: Tensor,
    batch_size: int,
    compute: Callable[[list[int]], Tensor],
    root: Path | None = None,
) -> CachedLogits:
    """The logits that are described so, computed where they are not there: by one process, the others wait.

    They are computed in batches of one size in the order of the numbers, so that they do not depend on who
    asked first, nor on the epoch.

    Args:
        about: all that decides about them, as JSON.
        numbers: of the training samples, in any order.
        compute: the logits of samples by their numbers.
    """
    ordered = np.sort(numbers.numpy())
    facts = {**about, "batch_size": batch_size, "torch": torch.__version__}
    facts["samples"] = hashlib.blake2b(ordered.astype("<i8").tobytes(), digest_size=16).hexdigest()
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    root = root or cache_folder() / "logits"
    folder = root / key
    if (logits := existing(folder)) is not None:
        return CachedLogits(logits, ordered)
    damaged = folder.exists()
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{key}.lock"):
        if (logits := existing(folder)) is None:
            scrap = root / f"{key}.part"
            for old in (scrap, folder):  # of a process that was killed, or damaged since
                shutil.rmtree(old, ignore_errors=True)
            scrap.mkdir()
            try:
                write_logits(scrap, facts, ordered, batch_size, compute)
                os.replace(scrap, folder)
            finally:
                shutil.rmtree(scrap, ignore_errors=True)
            logits = existing(folder)
    assert logits is not None
    return replace(CachedLogits(logits, ordered), mended=damaged)


def write_logits(
    folder: Path,
    facts: Mapping[str, Any],
    numbers: np.ndarray,
    batch_size: int,
    compute: Callable[[list[int]], Tensor],
) -> None:
    """Computes and writes them. The last batch is filled up with samples before it: one shape for all."""
    size, count = min(batch_size, len(numbers)), len(numbers)
    digest, shape = hashlib.blake2b(digest_size=16), []
    with (
        (folder / LOGITS).open("wb") as file,
        counting(f"logits of the teacher for {count:,} samples", "thousand") as progress,
    ):
        for begin in range(0, count, size):
            chosen = numbers[max(0, min(begin, count - size)) :][:size]
            new = compute(chosen.tolist())[-min(size, count - begin) :].float().cpu().contiguous()
            content = new.numpy().tobytes()
            file.write(content)
            digest.update(content)
            shape = list(new.shape[1:])
            progress((begin + len(new)) / 1000)
        file.flush()
        os.fsync(file.fileno())
    record = {"of": dict(facts), "shape": [count, *shape], "digest": digest.hexdigest()}
    write_json(folder / ABOUT, sealed(record))


def existing(folder: Path) -> np.ndarray | None:
    """The logits in a folder, if they are what was written there; they are read once for that."""
    about, path = read_json(folder / ABOUT), folder / LOGITS
    if not is_whole(about):
        return None
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError:
        return None
    shape = tuple(about["shape"])
    if digest != about["digest"] or path.stat().st_size != 4 * math.prod(shape):
        return None
    return np.memmap(path, dtype=np.float32, mode="r", shape=shape)
