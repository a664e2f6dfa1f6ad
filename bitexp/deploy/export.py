"""A trained model for other engines, from its packed file.

    python -m bitexp export outputs/lm_portable                            what can leave, and to where
    python -m bitexp export outputs/lm_portable --to transformers          into a folder beside the run
    python -m bitexp export outputs/lm_portable --to gguf type=tq1_0       with an option of the target
    python -m bitexp export packed.safetensors --to torch --out FOLDER

A folder has a README that says what is exact and how to run it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.common.files import parse_yaml
from bitexp.common.format import path_text, size
from bitexp.common.program import run_program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument(
        "run", type=Path, help="a run's folder, a folder of runs (the last one), a packed file"
    )
    parser.add_argument("options", nargs="*", metavar="KEY=VALUE", help="options of the target")
    parser.add_argument(
        "--to", metavar="TARGET", help="transformers, gguf, onnx, torch, c; without it: what is possible"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="run what was written in its engine, on data that the run held out",
    )
    parser.add_argument(
        "--out", type=Path, help="the folder to write (default: export/TARGET beside the packed file)"
    )


def run(options: argparse.Namespace) -> None:
    """Writes the folder, or says what is possible.

    Raises:
        UserError: no such run, target or option, what the target cannot express, or a folder that is
            somebody else's.
    """
    from bitexp.deploy.engines import ENGINES
    from bitexp.deploy.exporters import EXPORTERS, expressible
    from bitexp.deploy.exporters.exporter import InexpressibleError
    from bitexp.deploy.exporters.source import read_source
    from bitexp.deploy.exporters.writing import build, write

    report = Report()
    arguments = read_options(options.options)
    packed = read_source(options.run)
    tokenizer = packed.preprocessing.get("tokenizer")
    if options.to is None:
        found = expressible(packed.model, tokenizer)
        rows = {name: "can be written" if why is None else f"no: {why}" for name, why in found.items()}
        report.rows(f"{packed.name} · {path_text(packed.path)}", rows)
        return
    exporter = build(options.to, arguments)
    out = options.out or packed.path.parent / "export" / options.to
    try:
        exporter.check(packed.model, tokenizer)
        exported, files = write(exporter, packed, out)
    except InexpressibleError as error:
        found = expressible(packed.model, tokenizer)
        others = [name for name, why in found.items() if why is None and name != options.to]
        also = f". It can go to {', '.join(others)}" if others else ""
        raise UserError(f"{EXPORTERS.get(options.to).engine} cannot run this model: {error}{also}") from None
    rows = {"files": ", ".join(f"{name} ({size(count)})" for name, count in sorted(files.items()))}
    for number, sentence in enumerate(exported.exact):
        rows["exact" if number == 0 else " " * number] = sentence
    rows["folder"] = path_text(out)
    report.rows(f"{packed.name} for {exporter.engine}", rows)
    if options.check:
        from bitexp.deploy.engine_table import tell

        tell(packed, {exporter.engine: ENGINES.get(exporter.engine)}, out)


def read_options(words: Sequence[str]) -> dict[str, Any]:
    """Options of a target as they are typed. Raises `UserError` for a word without an equals sign."""
    pairs = [word.partition("=") for word in words]
    if wrong := [key for key, equals, _ in pairs if not equals]:
        raise UserError(f"'{wrong[0]}' is no option of a target: these are typed KEY=VALUE, as in type=tq1_0")
    return {key: parse_yaml(value) for key, _, value in pairs}


def main(words: Sequence[str]) -> int:
    """`python -m bitexp export`."""
    return run_program("export", __doc__, add_arguments, run, words)
