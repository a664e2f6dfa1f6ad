"""Which commit the name of a data set on the Hugging Face hub means today."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from bitexp.common.files import read_json, write_json
from bitexp.data.cache import cache_folder, is_whole, sealed

PATIENCE = 10.0  # seconds


@dataclass(frozen=True)
class Commit:
    """A commit on the hub."""

    id: str | None
    """40 hexadecimal digits; None where it could never be asked for."""
    asked: bool
    """Whether that is so today: without an answer of the hub it is what the last answer was."""


def find_commit(path: str, revision: str | None) -> Commit:
    """The commit of a branch or tag (None: the main branch) of a data set; kept for days without network."""
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return Commit(revision, asked=True)
    key = hashlib.blake2b(json.dumps([path, revision]).encode(), digest_size=12).hexdigest()
    place = cache_folder() / "commits" / f"{key}.json"
    try:
        commit = ask_hub(path, revision)
    except Exception:  # no network, no library, no such name: reading the data tells why, if they are needed
        record = read_json(place) if place.is_file() else None
        return Commit(record["commit"] if is_whole(record) else None, asked=False)
    with contextlib.suppress(OSError):  # where nothing can be kept
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, sealed({"path": path, "revision": revision, "commit": commit}))
    return Commit(commit, asked=True)


def ask_hub(path: str, revision: str | None) -> str:
    """The commit by the hub's own answer. Raises whatever the library does."""
    from huggingface_hub import HfApi

    info: Any = HfApi().dataset_info(path, revision=revision, timeout=PATIENCE)
    return str(info.sha)
