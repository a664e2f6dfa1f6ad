"""`python -m bitexp.report`: the same as `python -m bitexp report`."""

from __future__ import annotations

import sys

from bitexp.report.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
