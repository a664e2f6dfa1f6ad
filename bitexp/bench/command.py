"""What a precision costs and gives, measured on this machine.

    python -m bitexp bench [step] ...   a training step: time and memory by quantizer
    python -m bitexp bench layers ...   a frozen layer: every kernel and installed peer, against what the
                                        processor allows
    python -m bitexp bench models ...   frozen models: tokens and images per second, against fp32
    python -m bitexp bench decode ...   tokens one by one, against reading the weights, and llama.cpp
    python -m bitexp bench engines ...  a trained language model in other engines, beside bitexp
    python -m bitexp bench tables ...   weights of a run by tables of values, and by a choice of them
    python -m bitexp bench gpu ...      layers on a GPU: the kernel triton, torch and installed peers
    python -m bitexp bench sweep ...    a small grid by each launcher, against a plain torch loop

Each has a --help of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from bitexp.common.console import Report, error
from bitexp.common.program import run_program
from bitexp.common.spelling import nearest

BENCHMARKS = {
    "step": "bitexp.bench.steps",
    "layers": "bitexp.bench.layers",
    "models": "bitexp.bench.models",
    "decode": "bitexp.bench.decode",
    "engines": "bitexp.bench.engines",
    "gpu": "bitexp.bench.gpu",
    "sweep": "bitexp.bench.sweeps",
    "tables": "bitexp.bench.tables",
}


def main(words: Sequence[str]) -> int:
    """`python -m bitexp bench`: the first word names a benchmark, without one it is `step`."""
    if words and words[0] in ("-h", "--help"):
        Report().line((__doc__ or "").rstrip())
        return 0
    named = bool(words) and not words[0].startswith("-")
    name = words[0] if named else "step"
    if name not in BENCHMARKS:
        error(f"unknown benchmark '{name}'.{nearest(name, BENCHMARKS)} Known: {', '.join(BENCHMARKS)}")
        return 2
    chosen = import_module(BENCHMARKS[name])
    return run_program(
        f"bench {name}",
        chosen.__doc__,
        chosen.add_arguments,
        lambda options: chosen.run(options, Report()),
        words[1:] if named else words,
    )
