"""A trained model on the data that its run held out: in another engine, on corrupted images, cut to a size.

    python -m bitexp evaluate outputs/lm_portable --runtime llama.cpp
    python -m bitexp evaluate outputs/vit_ternary --runtime torch --runtime onnxruntime
    python -m bitexp evaluate outputs/lm_portable                            every engine that is installed
    python -m bitexp evaluate outputs/vit_ternary --corruptions              noise, blur, contrast ...
    python -m bitexp evaluate outputs/lm_full --bytes 200000,400000          the run's stack, cut to a size

Engines: does it compute the same, and how fast? What one reads is exported into a folder of its own, and its
figures are kept in the run's folder, where reports find them; or it is taken from --folder. Exit code 1 where
an engine computes something else.

Corruptions: the accuracy of every finished run in the folder under those of CIFAR-10-C, at five strengths.
They and the quality of a stack at some sizes are kept in the run's folder, where reports find them, and are
not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bitexp.common.errors import UserError
from bitexp.common.program import positive, run_program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("run", type=Path, help="a run's folder, or a folder of runs (the last one)")
    parser.add_argument(
        "--runtime", action="append", help="an engine; again for more (default: all there are)"
    )
    parser.add_argument("--corruptions", action="store_true", help="corrupt the test images")
    parser.add_argument(
        "--bytes", metavar="N,N,...", help="sizes of the run's stack (python -m bitexp stack)"
    )
    parser.add_argument("--folder", type=Path, help="what was exported already, for one engine")
    parser.add_argument(
        "--samples", type=int, help="windows of text (default: 24) or images (10,000; corrupted 2,000)"
    )
    parser.add_argument("--threads", type=positive, default=1)


def run(options: argparse.Namespace) -> None:
    """Compares and prints a table.

    Raises:
        UserError: no such run or engine, no data, no engine that could run it, or options that do not go
            together.
    """
    import torch

    if options.samples is not None and options.samples < 1:
        raise UserError(f"--samples={options.samples} must be at least 1")
    torch.set_num_threads(options.threads)
    if options.corruptions or options.bytes is not None:
        if options.runtime or options.folder or (options.corruptions and options.bytes is not None):
            raise UserError(
                "--corruptions and --bytes are of bitexp's own files: one of them goes, without --runtime "
                "and --folder"
            )
        if options.bytes is not None:
            from bitexp.deploy.forms.curve import tell_curve

            return tell_curve(options.run, options.bytes, options.samples)
        from bitexp.deploy.robustness.corruption import tell_corruptions

        return tell_corruptions(options.run, options.samples)

    from bitexp.deploy.engine_table import tell
    from bitexp.deploy.engines import ENGINES
    from bitexp.deploy.exporters.source import read_source

    names = options.runtime or [name for name in ENGINES.names() if not ENGINES.get(name).asked_for]
    engines = {name: ENGINES.get(name) for name in names}
    if options.folder and len(engines) != 1:
        raise UserError("--folder holds what one engine reads: name it with --runtime")
    tell(read_source(options.run), engines, options.folder, options.samples, strict=bool(options.runtime))


def main(words: Sequence[str]) -> int:
    """`python -m bitexp evaluate`."""
    return run_program("evaluate", __doc__, add_arguments, run, words)
