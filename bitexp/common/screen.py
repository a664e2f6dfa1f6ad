"""The screen, which may know few characters, and may be gone before the work is done."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from bitexp.common.errors import UserError

PLAIN = {
    "·": "-",
    "×": "x",
    "−": "-",
    "–": "-",
    "—": "-",
    "→": "->",
    "…": "...",
    "≥": ">=",
    "≤": "<=",
    "±": "+-",
}


class Screen:
    """A text stream that can be lost: a closed pipe or terminal, a full disk behind it.

    Args:
        stream: where the text goes.
        keep_going: drop what cannot be written, as a run's files hold what matters. Otherwise a lost stream
            raises `BrokenPipeError` where nobody reads on, else `UserError`.
    """

    def __init__(self, stream: TextIO, keep_going: bool) -> None:
        self._stream, self._keep_going = stream, keep_going
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        self._attempt(self._stream.write, text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _attempt(self, action: Callable[..., object], *values: str) -> None:
        if self.lost is not None:
            return
        try:
            action(*values)
        except OSError as problem:
            self.lost = problem
            with contextlib.suppress(OSError):  # what is in the buffer goes there when Python ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if not self._keep_going:
                if isinstance(problem, BrokenPipeError):
                    raise
                raise UserError(f"the output could not be written: {problem.strerror}") from problem


def protect(keep_going: bool) -> None:
    """Makes screens of stdout and stderr; a terminal without a character is given a likeness of it."""
    codecs.register_error("likeness", likeness)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None:  # as under pythonw
            with contextlib.suppress(AttributeError):
                stream.reconfigure(errors="likeness")
            setattr(sys, name, Screen(stream, keep_going))


def likeness(problem: UnicodeError) -> tuple[str, int]:
    """Plain characters for those that an encoding does not have."""
    if not isinstance(problem, UnicodeEncodeError):
        raise problem
    missing = problem.object[problem.start : problem.end]
    return "".join(PLAIN.get(letter, "?") for letter in missing), problem.end


def loss() -> OSError | None:
    """Why stdout was given up, or None."""
    lost: OSError | None = getattr(sys.stdout, "lost", None)
    return lost
