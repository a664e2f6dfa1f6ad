"""Whom a run has learned from, in a word: the keys of its teacher become one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEY = "distill.teacher"


def with_teacher(flat: Mapping[str, Any], attempt: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config by dotted key, with a word under `distill.teacher`.

    A teacher that was made for it is said by how it differs from its student, which every seed has of its
    own; any other by its quantizer and its id, or the hash of its content. It comes first, since what else
    says something about teachers follows from there being one.
    """
    own = {key: value for key, value in flat.items() if key.startswith((f"{KEY}.", f"{KEY}_"))}
    if not own:
        return dict(flat)
    rest = {key: value for key, value in flat.items() if key not in own}
    return {KEY: word(own, attempt.get("teacher")), **rest}


def word(own: Mapping[str, Any], record: Any) -> str:
    """The teacher in a word."""
    begin, record = f"{KEY}.run", record if isinstance(record, Mapping) else {}
    made = {key.removeprefix(f"{begin}."): v for key, v in own.items() if key.startswith(f"{begin}.")}
    if made:
        words = [str(value) if key == "quantizer" else f"{key}={value}" for key, value in made.items()]
    elif own.get(begin) is not None:
        words = ["itself"]
    else:
        identity = str(own.get(f"{KEY}.identity"))
        words = [str(record[key]) for key in ("quantizer",) if record.get(key)] + [identity[:10]]
    words += ["last"] if own.get(f"{KEY}.weights") == "last" else []
    words += [f"seed {seed}"] if (seed := own.get(f"{KEY}_seed")) is not None else []
    return " ".join(words)
