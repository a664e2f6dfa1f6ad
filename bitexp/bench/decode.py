"""Tokens from a frozen language model with random weights, one by one, beside what memory allows.

    python -m bitexp bench decode
    python -m bitexp bench decode --models decoder --quantizer ternary_mean --texts 8

There are two floors, measured in the same rounds: reading as many bytes as a token reads of weights, and as
many bare products as its packed layers have, where the processor has an instruction for them. llama.cpp runs
the same model with TQ2_0 weights where `xllamacpp` and `gguf` are installed and it has such a model (as the
preset `b158` gives).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from rich import box
from rich.table import Table

from bitexp.bench.layers import bare_products, call_on
from bitexp.bench.models import composed_model
from bitexp.bench.output import save_rows
from bitexp.bench.timing import measure
from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.common.format import counted, size
from bitexp.common.program import positive
from bitexp.deploy.compiled import CompiledDecoder
from bitexp.deploy.engines.llama_cpp import Llama
from bitexp.deploy.exporters.decoder_form import decoder_form
from bitexp.deploy.exporters.gguf_file import GgufFile, write_gguf
from bitexp.deploy.frozen import freeze
from bitexp.deploy.tape import CannotCompileError
from bitexp.kernels.cpu import memory
from bitexp.kernels.cpu.jit import missing
from bitexp.models.decoder import Decoder
from bitexp.models.generation import Sampling, Writer, generate_together

READ, DOTS = "reading the bytes", "bare products"
COMPILED, LAYERS, LLAMA = "compiled", "layer by layer", "llama.cpp TQ2_0"
OFF = 0.2
"""Relative error of logits from which a peer computes another model, and not only a coarser one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `decode`."""
    parser.add_argument(
        "--models", nargs="+", default=["reloaded_256"], metavar="NAME", help="default: reloaded_256"
    )
    parser.add_argument("--quantizer", default="b158", metavar="NAME", help="default: b158")
    parser.add_argument("--tokens", type=positive, default=32, help="to generate (default: 32)")
    parser.add_argument("--texts", type=positive, default=1, help="that are written at once (default: 1)")
    parser.add_argument("--context", type=positive, default=256)
    parser.add_argument("--vocabulary", type=positive, default=8000)
    parser.add_argument("--rounds", type=positive, default=9, help="the median of so many (default: 9)")
    parser.add_argument("--output", type=Path, help="a folder for decode.csv and decode.md")
    parser.set_defaults(shape=(1, 8, 8), classes=10)


def run(options: argparse.Namespace, report: Report) -> None:
    """Measures, prints a table per model, and writes the files where asked to."""
    torch.set_num_threads(1)
    if reason := missing():
        raise UserError(f"nothing can be compiled here: {reason}")
    if options.tokens >= options.context:
        raise UserError(f"--tokens={options.tokens} must be below --context={options.context}")
    report.line(
        f"one thread, CPU time, median of {counted(options.rounds, 'round')}, torch {torch.__version__}"
    )
    rows = []
    for name in options.models:
        model = composed_model(name, options.quantizer, options).eval()
        if not isinstance(model, Decoder):
            raise UserError(f"{name} is not a language model, so it writes no tokens")
        freeze(model, kernel="cpu")
        try:
            compiled = CompiledDecoder(model, options.texts)
        except CannotCompileError as error:
            raise UserError(f"{name} with {options.quantizer} cannot be compiled: {error}") from None
        found = measured(model, compiled, options, report)
        bytes_ = compiled.compiled.bytes
        report.table(table(f"{name}, {size(bytes_)} of weights per step", found, options.texts))
        rows += [{"model": name, "name": n, "bytes": bytes_, "seconds": s} for n, s in found.items()]
    if options.output:
        save_rows(options.output / "decode", rows)
        report.line(f"written to {options.output}")


def measured(
    model: Decoder, compiled: CompiledDecoder, options: argparse.Namespace, report: Report
) -> dict[str, float]:
    """Seconds per step, a token of each text, by implementation."""
    from bitexp.bench.floors import read_bytes
    from bitexp.kernels.cpu.program import LAYER

    steps, tape = options.tokens, compiled.compiled.steps
    layers = tape[tape["operation"] == LAYER]
    multiply = bare_products(int((layers["inputs"] * layers["outputs"]).sum()) * options.texts * steps)
    bytes_ = memory.copied(torch.ones(-(-compiled.compiled.bytes // 256) * 256, dtype=torch.uint8))
    floor = functools.partial(call_on, read_bytes(), bytes_)
    calls: dict[str, Callable[[], object]] = {READ: lambda: [floor() for _ in range(steps)]}
    if multiply is not None:
        calls[DOTS] = multiply
    for name, writer in ((COMPILED, compiled), (LAYERS, model)):
        calls[name] = functools.partial(write, writer, options.texts, steps)
    with tempfile.TemporaryDirectory() as folder:
        if options.texts == 1:
            try:
                calls[LLAMA] = functools.partial(greedy, llama(Path(folder), model), 1, steps)
            except (UserError, OSError, ValueError) as error:
                report.line(f"{LLAMA} is skipped: {error}")
        seconds = measure({name: [call] for name, call in calls.items()}, options.rounds)
    return {name: taken / steps for name, taken in seconds.items()}


def write(writer: Writer, texts: int, count: int) -> list[list[int | None]]:
    """Greedy generation after prompts of one token."""
    prompts = [[1 + i] for i in range(texts)]
    return list(itertools.islice(generate_together(writer, prompts, Sampling(temperature=0)), count))


def llama(folder: Path, model: Decoder) -> Llama:
    """The same model in llama.cpp. Raises `RuntimeError` where its logits are others."""
    GgufFile(type="tq2_0").check(model)
    write_gguf(folder / "model.gguf", decoder_form(model), "tq2_0", "bench", None)
    peer = Llama(folder / "model.gguf")
    tokens = torch.arange(1, 9) % model.embed.num_embeddings
    with torch.inference_mode():
        expected = model(tokens[None])[0, -1]
    for token in tokens.tolist():
        logits = peer.step(token)
    off = float((torch.from_numpy(logits.copy()) - expected).norm() / expected.norm())
    if not off < OFF:
        raise RuntimeError(f"llama.cpp computes different logits: {off:.3f}")
    return peer


def greedy(model: Llama, token: int, count: int) -> list[int]:
    """The likeliest tokens after one."""
    model.clear()
    found = [token]
    for _ in range(count):
        found.append(int(model.step(found[-1]).argmax()))
    return found[1:]


def table(title: str, seconds: dict[str, float], texts: int) -> Table:
    """A line per implementation."""
    out = Table(box=box.SIMPLE_HEAD, title=title)
    out.add_column("a token of each text by" if texts > 1 else "a token by")
    floors = [name for name in (READ, DOTS) if name in seconds]
    for title in ("us", "tokens per second", *(f"share of {name}" for name in floors)):
        out.add_column(title, justify="right")
    for name, taken in sorted(seconds.items(), key=lambda item: item[1]):
        rate = "" if name in floors else f"{texts / taken:,.0f}"
        out.add_row(name, f"{taken * 1e6:,.0f}", rate, *(f"{seconds[floor] / taken:.2f}" for floor in floors))
    return out
