"""What a user is told. A `UserError` is printed as it is, without a traceback, and exits with code 2."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MEMORY = ("out of memory", "allocate memory", "bad_alloc", "failed to map segment")


class UserError(Exception):
    """Something the user can mend: the message says what was wrong, what is allowed, what to do."""


class Pruned(Exception):
    """A study ended the run before its time; the message says when and at which value."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A sentence naming the closest of the known words, or nothing: ` Did you mean 'cnn'?`."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""


def dotted(config: Mapping[Any, Any], prefix: str = "") -> list[str]:
    """All keys of a nested config: `trainer`, `trainer.epochs`, ..."""
    names = []
    for key, value in config.items():
        names.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            names += dotted(value, f"{prefix}{key}.")
    return names


def unknown_key(key: str, known: Sequence[str]) -> str:
    """What is said about a key that is not among the known ones, all of them dotted."""
    section, _, word = key.rpartition(".")
    if section in known and not any(name.startswith(f"{section}.") for name in known):
        return (
            f"unknown key '{key}'. '{section}' has no keys here: set it as a whole, as in "
            f"'{section}={{{word}: ...}}'"
        )
    while section and section not in known:
        section = section.rpartition(".")[0]
    siblings = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == section]
    elsewhere = [name for name in known if name.rpartition(".")[2] == word]
    close = difflib.get_close_matches(word, siblings, n=1, cutoff=0.5)
    meant = elsewhere if len(elsewhere) == 1 else [f"{section}.{name}".lstrip(".") for name in close]
    hint = f" Did you mean '{meant[0]}'?" if meant else ""
    where = f" in {section}" if section else ""
    return f"unknown key '{key}'.{hint} Known{where}: {', '.join(siblings)}"


def describe_crash(crash: BaseException) -> dict[str, str]:
    """The kind and reason of a failure: out of memory, disk full, or a crash.

    What came before counts as well: torch answers a lack of memory or disk while it saves with another error.
    """
    before = crash.__cause__ or crash.__context__
    if isinstance(before, MemoryError | OSError):
        found = describe_crash(before)
        if found["kind"] != "crash":
            return found
    text = str(crash).strip().splitlines()
    reason = f"{type(crash).__name__}: {text[0] if text else ''}".rstrip(": ")
    if isinstance(crash, MemoryError) or any(words in str(crash).lower() for words in MEMORY):
        return {"kind": "out_of_memory", "reason": f"out of memory ({reason})"}
    if isinstance(crash, OSError) and crash.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return {"kind": "disk_full", "reason": f"the disk is full ({reason})"}
    return {"kind": "crash", "reason": reason}
