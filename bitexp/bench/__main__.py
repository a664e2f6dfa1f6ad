"""What a precision costs and gives, measured on this machine.

    python -m bitexp.bench [step] ...   a training step: time and memory by quantizer
    python -m bitexp.bench layers ...   a frozen layer: every kernel and installed peer, against what the
                                        processor allows
    python -m bitexp.bench models ...   frozen models: tokens and images per second, against fp32
    python -m bitexp.bench gpu ...      layers on a GPU: the kernel triton, torch and installed peers

Each has a --help of its own.
"""

from __future__ import annotations

import argparse
import sys

from bitexp.bench import gpu, layers, models, steps
from bitexp.common.console import Report, error
from bitexp.common.exit import guarded
from bitexp.common.spelling import nearest

BENCHMARKS = {"step": steps, "layers": layers, "models": models, "gpu": gpu}


def main() -> None:
    """`python -m bitexp.bench`."""
    words = sys.argv[1:]
    if words and words[0] in ("-h", "--help"):
        Report().line((__doc__ or "").rstrip())
        sys.exit(0)
    name = words.pop(0) if words and not words[0].startswith("-") else "step"
    if name not in BENCHMARKS:
        error(f"unknown benchmark '{name}'.{nearest(name, BENCHMARKS)} Known: {', '.join(BENCHMARKS)}")
        sys.exit(2)
    chosen = BENCHMARKS[name]
    parser = argparse.ArgumentParser(prog=f"python -m bitexp.bench {name}", description=chosen.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    chosen.add_arguments(parser)
    options = parser.parse_args(words)
    sys.exit(guarded(lambda: chosen.run(options, Report())))


if __name__ == "__main__":
    main()
