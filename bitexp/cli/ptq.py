"""Post-training quantization of a run: what it learned in other precisions, without a step of training.

    python -m bitexp ptq outputs/fashion_mlp/ID
    python -m bitexp ptq outputs/fashion_mlp/ID --bits 2,3,4,8 --calibrate none,adaround
    python -m bitexp ptq outputs/fashion_mlp/ID --quantizer binary,ternary_mean,ternary_median
    python -m bitexp ptq outputs/fashion_mlp/ID quantizer.weights.granularity=tensor

It is short for runs with +recipe=ptq, and prints the command that it stands for. Further words are those of
a run. Values with commas make a run for each.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bitexp.common.errors import UserError
from bitexp.common.program import run_program
from bitexp.config.words import quoted

OWN = (
    "calibrate", "distill", "hydra", "optimizer", "quantizer", "recipe", "rerun", "scheduler", "start",
    "sweeps", "trainer.max_steps", "tuned",
)  # fmt: skip
"""What was typed for the run that counts for its training alone, or is said anew."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--quantizer", default="int", metavar="NAMES", help="default: int")
    parser.add_argument("--bits", metavar="BITS", help="of its weights: 2 to 8 of int, which has 4")
    parser.add_argument(
        "--calibrate", default="none", metavar="NAMES", help="none (default), bn, adaround, adaquant"
    )


def long_form(options: argparse.Namespace, settings: Sequence[str]) -> list[str]:
    """What the command is short for, but for `python -m bitexp`.

    Args:
        settings: further words of a run.

    Raises:
        UserError: there is no such run.
    """
    from bitexp.deploy.sources import find_source
    from bitexp.report.runs import typed

    source = find_source(options.run, "ptq")
    if source.kind != "run":
        raise UserError(
            f"ptq takes the folder of a run, and {options.run} is another source ({source.kind}); the long "
            f"form takes it as well: +experiment=NAME +recipe=ptq start.from={options.run} quantizer=int"
        )
    chosen = [f"quantizer={options.quantizer}"]
    if options.bits is not None:
        chosen.append(f"quantizer.weights.bits={options.bits}")
    if options.calibrate != "none":
        chosen.append(f"calibrate={options.calibrate}")
    words = [
        *kept(typed(source.path)),
        "+recipe=ptq",
        f"start.from={value(source.path)}",
        *chosen,
        *settings,
    ]
    several = any("," in word.partition("=")[2] for word in [*chosen, *settings])
    return ["-m", *words] if several else words


def kept(words: Sequence[str]) -> Iterator[str]:
    """The words of a run that say what network and data it is about."""
    for word in words:
        key = word.lstrip("+~").partition("=")[0]
        if not any(key == own or key.startswith(f"{own}.") for own in OWN):
            yield word


def value(path: Path) -> str:
    """A path as a value of an override."""
    text = str(path)
    return text if all(c.isalnum() or c in "/._-" for c in text) else quoted(text)


def main(words: Sequence[str]) -> int:
    """`python -m bitexp ptq`; returns the exit code."""
    settings = [w for w in words if "=" in w and not w.startswith("--") and not Path(w).exists()]
    own, found = [word for word in words if word not in settings], list[list[str]]()
    code = run_program(
        "ptq", __doc__, add_arguments, lambda options: found.append(long_form(options, settings)), own
    )
    if code:
        return code
    from bitexp.cli.app import run
    from bitexp.common.console import Report

    sys.argv[1:] = found[0]
    Report().line(shlex.join(["python", "-m", "bitexp", *found[0]]))
    return run()
