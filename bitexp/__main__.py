"""The one door: `python -m bitexp WORD ...` is a command, without a word it is the run.

    python -m bitexp +experiment=vit_ternary
    python -m bitexp report outputs/vit_ternary

Nothing is imported but what the word needs, so that --help answers at once.
"""

from __future__ import annotations

import sys

from bitexp.cli.door import enter


def main() -> None:
    """`python -m bitexp`. Exit codes: 0 done, 1 a run failed, 2 bad input, 130 stopped."""
    sys.exit(enter(sys.argv[1:]))


if __name__ == "__main__":
    main()
