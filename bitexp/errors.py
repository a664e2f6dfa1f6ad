"""What a user is told. A `UserError` is printed as it is, without a traceback, and exits with code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: the message says what was wrong, what is allowed and what to do."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A sentence naming the closest of the known words, or nothing: ` Did you mean 'cnn'?`."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""
