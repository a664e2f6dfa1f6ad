"""Which bits for which layer of a trained run? An exact answer for a budget, as a preset.

    python -m bitexp allocate outputs/fashion_cnn/ID --bits 1.58,2,4,8 --budget size=50%
    python -m bitexp allocate outputs/fashion_cnn/ID --budget size=25% --by loss --name small
    python -m bitexp allocate outputs/fashion_cnn/ID --budget bytes=40kB --budget energy=80%
    python -m bitexp allocate outputs/fashion_cnn/ID --budget bops=50% --bits 4,8 --quantizer int

Shares are of what 8 bits in every layer take; bytes are those of the quantized layers in the packed file.
Further words are those of a run: quantizer.activations=none. The preset is a file of conf/quantizer, or of
the folder that --config-dir names.
"""

from __future__ import annotations

import argparse
import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from bitexp.cli.ptq import long_form
from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.common.format import path_text
from bitexp.common.program import run_program

EXAMPLE = "quantizer.activations=none"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="further words of a run")
    parser.add_argument(
        "--budget",
        action="append",
        required=True,
        help="size=50%%, bytes=20kB, energy=30%%, bops=50%%; again for more",
    )
    parser.add_argument("--bits", default="1.58,2,4,8", help="what a layer may have (default: 1.58,2,4,8)")
    parser.add_argument("--by", default="trace", help="trace (default), loss, error or orthogonality")
    parser.add_argument("--quantizer", default="uniform_mse", metavar="NAME", help="default: uniform_mse")
    parser.add_argument("--samples", type=int, default=512, help="training samples to measure on (512)")
    parser.add_argument("--name", help="of the preset (default: after experiment, measure and budget)")
    parser.add_argument("--config-dir", type=Path, help="a folder of configs of your own for the preset")


def run(options: argparse.Namespace, typed: Sequence[str]) -> None:
    """Measures, solves, prints and writes.

    Args:
        typed: the command line, for the record.

    Raises:
        UserError: no such run, width, measure or budget; or a preset that cannot be written.
    """
    from bitexp.allocation.budget import Budget
    from bitexp.allocation.sensitivities import SENSITIVITIES

    bits = widths(options.bits)
    budgets = [Budget.of(text) for text in options.budget]
    measure = SENSITIVITIES.get(options.by)()
    if options.samples < 1:
        raise UserError(f"--samples {options.samples} must be at least 1")
    if unknown := [word for word in options.settings if "=" not in word]:
        raise UserError(f"'{unknown[0]}' is no word of a run, which has a key and a value: {EXAMPLE}")
    chosen = argparse.Namespace(run=options.run, quantizer=options.quantizer, bits=None, calibrate="none")
    words = long_form(chosen, options.settings)

    from bitexp.allocation import preset
    from bitexp.allocation.budget import check_within, explained
    from bitexp.allocation.of_run import case_of
    from bitexp.allocation.program import Unattainable, allocate, total
    from bitexp.allocation.tables import layer_table, network_rows, network_table
    from bitexp.common.logs import quiet_libraries
    from bitexp.config.compose import composed
    from bitexp.config.paths import CONF
    from bitexp.report.terminal import rich_table

    config = composed(words)
    name = options.name or default_name(str(config["name"]), options)
    place = preset.place_of(name, options.config_dir or CONF)
    report = Report()
    quiet_libraries(int(config["trainer"]["threads"]))
    with report.console.status("building the network at each width"):
        case = case_of(config, bits, options.samples)
    network, costs = case.network, case.costs
    limits = check_within(budgets, costs, case.at_8_bits)
    try:
        allocate(0 * costs["bytes"], costs, limits, network.ties)  # before what takes long
    except Unattainable as problem:
        raise UserError(explained(problem, budgets, costs, case.at_8_bits)) from problem
    with report.console.status(options.by) as status:
        table = measure(network, lambda what: status.update(f"{options.by}: {what}"))
    found = allocate(table, costs, limits, network.ties)
    report.table(rich_table(layer_table(network, table, found)))
    with report.console.status("the loss at each width"):
        rows = list(network_rows(network, costs, table, found, measure))
    report.table(rich_table(network_table(rows)))
    full = network.loss()
    spent = [f"{b.text}: {b.amount(total(costs[b.cost], found), case.at_8_bits[b.cost])}" for b in budgets]
    loss = f"loss {rows[0].measured:.4f}, {full:.4f} in full precision, on {options.samples} training samples"
    said = f"{'; '.join(spent)}; {loss}"
    report.sentences(f"{said}.")

    command = shlex.join(["python", "-m", "bitexp", "allocate", *typed])
    text = preset.preset_text(
        name,
        {
            **case.section,
            "weights": case.weights[max(set(found), key=found.count)],
            **preset.selection(config),
        },
        preset.rules(
            [layer.name for layer in network.layers], network.ties, [case.weights[width] for width in found]
        ),
        [command, said],
    )
    preset.write(place, text)
    report.rows(f"Preset {path_text(place)}", next_commands(words, name, options.config_dir))


def next_commands(words: Sequence[str], name: str, folder: Path | None) -> dict[str, str]:
    """What evaluates a preset and what trains it, on the run that it is for.

    Args:
        words: of the run without steps that was allocated; folder: where the preset is, if not in conf.
    """
    start = ["python", "-m", "bitexp", *(["--config-dir", str(folder)] if folder else [])]
    own = [word for word in words if not word.startswith(("quantizer=", "quantizer."))]
    plain = [word for word in own if word != "+recipe=ptq"]
    return {
        "evaluate it": shlex.join([*start, *own, f"quantizer={name}"]),
        "train it": shlex.join([*start, *plain, "+recipe=finetune", f"quantizer={name}"]),
    }


def widths(text: str) -> list[float]:
    """The bits in `1.58,2,4`, in ascending order. Raises `UserError` where there are no two above 0."""
    try:
        found = sorted({float(word) for word in text.split(",")})
    except ValueError:
        found = []
    if len(found) < 2 or not all(0 < width < math.inf for width in found):
        raise UserError(f"--bits {text}: give at least two numbers above 0 to choose from, as in 1.58,2,4,8")
    return found


def default_name(experiment: str, options: argparse.Namespace) -> str:
    """A preset's name after what it is of: fashion_cnn_trace_size50."""
    words = [experiment, options.by, *options.budget]
    return "_".join(re.sub(r"[^A-Za-z0-9_]+", "", word) for word in words)


def main(words: Sequence[str]) -> int:
    """`python -m bitexp allocate`; returns the exit code."""
    return run_program("allocate", __doc__, add_arguments, lambda options: run(options, words), words)
