"""Completion in a shell, by Hydra's scripts: `eval "$(bitexp -sc install=bash)"`, and likewise for fish.

A shell's script asks `bitexp -sc query=SHELL` with what has been typed in COMP_LINE. Hydra answers with
overrides; the words of commands are ours.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from bitexp.cli.commands import COMMANDS, is_word
from bitexp.common.console import write

PROGRAM = re.compile(r"^\s*(\S*python\S*\s+(-m\s+)?)?\S+\s*")
"""What starts a line: `bitexp`, or `python -m bitexp`."""


def complete(words: Sequence[str]) -> int:
    """Answers a query of a shell; everything else that has to do with completion is Hydra's."""
    from bitexp.cli.app import run

    if not any(word.startswith("query=") for word in words):
        return run()
    typed = PROGRAM.sub("", os.environ.get("COMP_LINE", ""))
    first, more, _ = typed.partition(" ")
    if more and is_word(first):
        return 0  # the arguments of a command are mostly paths, with which the shell goes on by itself
    os.environ["COMP_LINE"] = f"bitexp {typed}"  # Hydra cannot tell `-m bitexp` from what is typed after it
    if not more:
        write("".join(f"{word}\n" for word in COMMANDS if word.startswith(first)))
    return run()
