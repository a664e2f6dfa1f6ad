"""A command that composes no config: its arguments, and its work with the exit code."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from bitexp.common.exit import guarded


def positive(text: str) -> int:
    """An argument that is a number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' must be a whole number of at least 1")
    return int(text)


def run_program(
    name: str,
    description: str | None,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], Any],
    words: Sequence[str],
) -> int:
    """Reads `words` as the arguments of `python -m bitexp NAME`, runs it, and returns the exit code.

    Args:
        description: the module's docstring, shown as it is by `--help`.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m bitexp {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    options = parser.parse_intermixed_args(words)
    return guarded(lambda: run(options))
