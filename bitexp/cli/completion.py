"""Completion in a shell: `eval "$(bitexp -sc install=bash)"`, and by Hydra's scripts for fish and zsh.

A shell's script asks `bitexp -sc query=SHELL` with what has been typed in COMP_LINE. Hydra answers with
overrides; the words of commands are ours, and so is the script for bash: Hydra's completes no `python -m`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from bitexp.cli.commands import COMMANDS, is_word
from bitexp.common.console import write

PROGRAM = re.compile(r"^\s*(\S*python\S*\s+(-m\s+)?)?\S+\s*")
"""What starts a line: `bitexp`, or `python -m bitexp`."""

BASH = r"""
_bitexp()
{
    local words=($COMP_LINE) program=
    case "${words[0]}" in
        *python*) [ "${words[1]} ${words[2]}" = "-m bitexp" ] && program="${words[0]} -m bitexp" ;;
        *) program="${words[0]}" ;;
    esac
    [ -z "$program" ] && return
    local found=$(COMP_LINE=$COMP_LINE COMP_POINT=$COMP_POINT $program -sc query=bash 2> /dev/null)
    COMPREPLY=($(compgen -W "$found" -- "${words[COMP_CWORD]}"))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o default -o nospace -F _bitexp bitexp python python3
"""
"""Where it has no answer, and after a python of something else, the shell completes names of files."""


def complete(words: Sequence[str]) -> int:
    """Answers a query of a shell, or prints what bash runs; everything else about completion is Hydra's."""
    if "install=bash" in words:
        write(BASH)
        return 0
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
