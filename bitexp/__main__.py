"""The one door: `python -m bitexp WORD ...` is a command, without a word it is the run.

    python -m bitexp +experiment=vit_ternary
    python -m bitexp report outputs/vit_ternary

Nothing is imported but what the word needs, so that --help answers at once.
"""

from __future__ import annotations

import errno
import sys
from typing import Any

from bitexp.cli.commands import is_word
from bitexp.cli.door import enter
from bitexp.common.console import error
from bitexp.common.exit import Progress
from bitexp.common.screen import loss, protect


def main() -> None:
    """`python -m bitexp`. Exit codes: 0 done, 1 a run failed, 2 bad input, 130 stopped."""
    words = sys.argv[1:]
    protect(keep_going=not (words and is_word(words[0])))
    try:
        code: Any = enter(words)
    except SystemExit as end:  # of Hydra, after --help
        code = end.code or 0
    sys.stdout.flush()
    if code == 0 and not Progress.started and (lost := loss()) and lost.errno != errno.EPIPE:
        error(f"the output could not be written: {lost.strerror}")
        code = 2
    sys.exit(code)


if __name__ == "__main__":
    main()
