"""Words that a user typed: the nearest known one, and what is said about an unknown key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


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
