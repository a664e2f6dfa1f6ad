"""Which command was meant: tells its word from the overrides and flags of a run, and runs it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module

from bitexp import __version__
from bitexp.cli.commands import COMMANDS, is_word
from bitexp.common.console import error, write
from bitexp.common.imports import uncollected
from bitexp.common.spelling import nearest


def enter(words: Sequence[str]) -> int:
    """Takes what was typed after `python -m bitexp` to its command; returns the exit code."""
    if "BITEXP_FOLLOW" in os.environ and int(os.environ.get("LOCAL_RANK", 0)) > 0:
        from bitexp.cli.job import follow_first

        return follow_first()
    if list(words) == ["--version"]:
        write(f"bitexp {__version__}\n")
        return 0
    if words and is_word(words[0]):
        return command(words[0], words[1:])
    if words[:1] in (["-sc"], ["--shell-completion"]):
        from bitexp.cli.completion import complete

        return complete(words)
    from bitexp.cli.app import run

    return run()


def command(word: str, words: Sequence[str]) -> int:
    """Runs a command; an unknown word is answered with the closest match."""
    if word not in COMMANDS:
        error(
            f"unknown command '{word}'.{nearest(word, COMMANDS)} Known: {', '.join(COMMANDS)}. "
            "Settings of a run are written key=value"
        )
        return 2
    with uncollected():
        module = import_module(COMMANDS[word].module)
    return int(module.main(words))
