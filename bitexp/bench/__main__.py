"""`python -m bitexp.bench`: the same as `python -m bitexp bench`."""

from __future__ import annotations

import sys

from bitexp.bench.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
