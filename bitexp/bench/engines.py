"""A trained language model in other engines: how fast each reads a prompt and writes, beside bitexp.

    python -m bitexp bench engines outputs/lm_portable
    python -m bitexp bench engines outputs/lm_portable --runtime llama.cpp --tokens 64

All read the same packed file, exported to each of them, and take turns. Whether they compute the same is what
`python -m bitexp evaluate` says.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich import box
from rich.table import Table
from torch import Tensor

from bitexp.bench.output import save_rows
from bitexp.bench.timing import Call, measure
from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.common.format import counted, path_text, size
from bitexp.common.program import positive
from bitexp.deploy.compiled import CompiledDecoder
from bitexp.deploy.engines import ENGINES, Engine, Text
from bitexp.deploy.exporters.exporter import Packed, reason
from bitexp.deploy.exporters.source import read_source
from bitexp.deploy.exporters.writing import build, write
from bitexp.deploy.load import load_run
from bitexp.deploy.tape import CannotCompileError
from bitexp.kernels import choose_kernel
from bitexp.models.decoder import Decoder
from bitexp.models.generation import Writer

OURS = "bitexp"
Begin = Callable[[], Text]
"""Makes a new text."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `engines`."""
    parser.add_argument(
        "run", type=Path, help="a run's folder, a folder of runs (the last one), a packed file"
    )
    parser.add_argument(
        "--runtime", action="append", help="an engine; again for more (default: all there are)"
    )
    parser.add_argument("--kernel", default="auto", help="of bitexp (default: auto)")
    parser.add_argument("--prompt", type=positive, help="tokens to read (default: a context less one)")
    parser.add_argument("--tokens", type=positive, help="to write after one token (default: as many)")
    parser.add_argument("--rounds", type=positive, default=9, help="the median of so many (default: 9)")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--output", type=Path, help="a folder for engines.csv and engines.md")


def run(options: argparse.Namespace, report: Report) -> None:
    """Measures, prints a table, and writes the files where asked to.

    Raises:
        UserError: no such run or engine, no language model, or sizes beyond its context.
    """
    torch.set_num_threads(options.threads)
    packed = read_source(options.run)
    model = packed.model
    if not isinstance(model, Decoder):
        raise UserError(f"{packed.path} is not a language model, so it reads and writes no tokens")
    sizes = {"prompt": options.prompt or model.context - 1, "tokens": options.tokens or model.context - 1}
    for name, count in sizes.items():
        if count >= model.context:
            raise UserError(f"--{name}={count} must be below the context of {model.context}")
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(model.embed.num_embeddings, (sizes["prompt"],), generator=generator).tolist()
    with tempfile.TemporaryDirectory(prefix="bitexp-bench-") as folder:
        beginnings, bytes_ = texts(packed, options, Path(folder), report)
        calls: dict[str, dict[str, Sequence[Call]]] = {
            "reads": {n: [functools.partial(read, begin, prompt)] for n, begin in beginnings.items()},
            "writes": {
                n: [functools.partial(greedy, begin, sizes["tokens"])] for n, begin in beginnings.items()
            },
        }
        with torch.inference_mode():
            taken = {task: measure(each, options.rounds, options.threads) for task, each in calls.items()}
    rows = [
        {
            "name": name,
            "bytes": bytes_[name],
            "reads": sizes["prompt"] / taken["reads"][name],
            "writes": sizes["tokens"] / taken["writes"][name],
        }
        for name in beginnings
    ]
    report.line(
        f"{packed.name} · {path_text(packed.path)}: {counted(options.threads, 'thread')}, "
        f"{'CPU' if options.threads == 1 else 'wall'} time, median of {counted(options.rounds, 'round')}; "
        f"{counted(sizes['prompt'], 'token')} read, {counted(sizes['tokens'], 'token')} written"
    )
    report.table(table(rows))
    if options.output:
        save_rows(options.output / "engines", rows)
        report.line(f"written to {options.output}")


def texts(
    packed: Packed, options: argparse.Namespace, folder: Path, report: Report
) -> tuple[dict[str, Begin], dict[str, int]]:
    """What begins a text in bitexp and in every engine that has the model, and the bytes of the files."""
    kernel, name, _ = choose_kernel(options.kernel, "cpu")
    model = load_run(packed.path, "packed", kernel)[0]
    assert isinstance(model, Decoder)
    ours = f"{OURS}, {name}"
    writer: Writer = model
    try:
        writer = CompiledDecoder(model)
    except CannotCompileError as error:
        report.line(f"{ours} goes layer by layer: {error}")
    found: dict[str, Begin] = {ours: functools.partial(OwnText, writer)}
    bytes_ = {ours: packed.path.stat().st_size}
    known = [n for n in ENGINES.names() if not ENGINES.get(n).asked_for]
    for name in options.runtime or known:
        kind = ENGINES.get(name)
        exporter, place = build(kind.target, {}), folder / kind.target
        why = reason(exporter, packed.model, packed.preprocessing.get("tokenizer"))
        try:
            if kind.text is Engine.text:
                raise UserError(f"{name} computes all of a text anew for every token")
            if why is not None:
                raise UserError(why)
            if not place.exists():
                write(exporter, packed, place)
            engine = kind(place)
        except UserError as error:
            if options.runtime:
                raise
            report.line(f"{name} is left out: {error}")
            continue
        found[name] = engine.text
        bytes_[name] = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    return found, bytes_


class OwnText:
    """A text in bitexp (see `Text`)."""

    def __init__(self, writer: Writer) -> None:
        self.writer, self.cache = writer, writer.cache()

    def read(self, tokens: Sequence[int]) -> Tensor:
        return self.writer(torch.tensor([tokens]), self.cache)[0, -1]


def read(begin: Begin, prompt: Sequence[int]) -> Tensor:
    """Reads a prompt at once."""
    return begin().read(prompt)


def greedy(begin: Begin, count: int) -> list[int]:
    """The likeliest tokens after token 0, one by one."""
    text, found = begin(), [0]
    for _ in range(count):
        found.append(int(text.read(found[-1:]).argmax()))
    return found[1:]


def table(rows: Sequence[dict[str, float | str]]) -> Table:
    """A line per engine, two columns per task."""
    out = Table(box=box.SIMPLE_HEAD)
    out.add_column("runtime")
    for heading in ("files", "reads: tokens/s", "x bitexp", "writes: tokens/s", "x bitexp"):
        out.add_column(heading, justify="right")
    for row in rows:
        cells = (
            text
            for task in ("reads", "writes")
            for text in (f"{row[task]:,.0f}", f"{float(row[task]) / float(rows[0][task]):.2f}")
        )
        out.add_row(str(row["name"]), size(int(row["bytes"])), *cells)
    return out
