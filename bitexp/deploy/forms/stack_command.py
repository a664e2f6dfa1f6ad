"""A network in full precision as a stack of one-bit blocks: one file, of which any first part is a network.

    python -m bitexp stack outputs/lm_full
    python -m bitexp stack outputs/lm_full --blocks 8 --rank 16
    python -m bitexp evaluate outputs/lm_full --bytes 200000,400000,800000
    python -m bitexp generate outputs/lm_full --bytes 400000 --prompt "def "

Nothing is trained (BitStack, arXiv 2410.23918). Activations of training samples say what counts in a layer,
and the loss with a layer cut short says which blocks of the network come first. The stack is written beside
the packed file, as stacked.safetensors.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bitexp.common.errors import UserError
from bitexp.common.program import run_program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("run", type=Path, help="a run in full precision, or a folder of runs (the last one)")
    parser.add_argument("--blocks", type=int, default=16, help="of each layer (default: 16)")
    parser.add_argument("--rank", type=int, default=4, help="of the magnitudes of a block (default: 4)")
    parser.add_argument("--samples", type=int, default=256, help="of the training part (default: 256)")
    parser.add_argument("--threads", type=int, default=1)


def run(options: argparse.Namespace) -> None:
    """Makes and writes the stack.

    Raises:
        UserError: no such run, one that is quantized, no data, or a number out of its range.
    """
    for name in ("blocks", "rank", "samples", "threads"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}={getattr(options, name)} must be at least 1")
    import torch

    from bitexp.common.console import Report
    from bitexp.common.format import counted, path_text, size
    from bitexp.deploy.engine_table import data_of
    from bitexp.deploy.forms.calibration import activation_norms, training_samples
    from bitexp.deploy.forms.file import full_precision, matrices
    from bitexp.deploy.forms.load import STACK, packed_path
    from bitexp.deploy.forms.stack import save_stack, stacked
    from bitexp.deploy.load import find_run
    from bitexp.deploy.packed_file import PackedFile, unpack
    from bitexp.kernels.reference import Reference

    torch.set_num_threads(options.threads)
    report, folder = Report(), find_run(options.run)
    path = packed_path(folder)
    file = full_precision(path)
    samples = training_samples(data_of(path.parent), options.samples)
    model, _ = unpack(path, file, Reference())
    columns = activation_norms(model, matrices(*file), samples.inputs)

    def loss(cut: PackedFile) -> float:
        with torch.no_grad():
            for name in columns:
                model.get_parameter(name).copy_(cut[1][name])
        return samples.score(model).loss

    count = len(columns) * options.blocks
    report.line(
        f"{path_text(path)}: {counted(len(columns), 'layer')}, {counted(count, 'block')} of rank "
        f"{options.rank}, {counted(count, 'evaluation')} of {counted(len(samples), 'sample')}"
    )
    stack = stacked(file, columns, loss, options.blocks, options.rank, report.detail)
    out = path.parent / STACK
    save_stack(out, stack)
    smallest, largest = stack.extent
    report.line(f"{path_text(out)}: {size(smallest)} without a block, {size(largest)} with all of them")
    middle = (smallest + largest) // 2
    report.line(f"Its quality at a size: python -m bitexp evaluate {path_text(folder)} --bytes {middle}")


def main(words: Sequence[str]) -> int:
    """`python -m bitexp stack`."""
    return run_program("stack", __doc__, add_arguments, run, words)
