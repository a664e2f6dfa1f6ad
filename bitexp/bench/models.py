"""Whole frozen models with random weights: tokens and images per second, against the same model in fp32.

    python -m bitexp bench models
    python -m bitexp bench models --models vit_tiny --batch 1 64
    python -m bitexp bench models --models decoder --context 128 --kernels cpu

`generate` writes tokens one by one, `prompt` reads a whole context at once, `images` classifies batches.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import nn

from bitexp.bench.candidates import build_model, settings_of
from bitexp.bench.output import save_rows
from bitexp.bench.timing import Call, measure
from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.common.format import amount, counted, size
from bitexp.common.program import positive
from bitexp.common.spelling import nearest
from bitexp.config.paths import CONF
from bitexp.deploy.compiled import CompiledClassifier, CompiledDecoder
from bitexp.deploy.frozen import freeze
from bitexp.deploy.tape import CannotCompileError
from bitexp.kernels import KERNELS
from bitexp.models.decoder import Decoder
from bitexp.models.generation import Sampling, Writer, generate
from bitexp.quant import QUANTIZERS
from bitexp.quant.convert import quantize

FULL = "full, fp32"
Runs = Callable[..., Any]
"""A module, or what is compiled from one."""
Task = tuple[str, Callable[[Any], Any], int]


@dataclass(frozen=True)
class ModelTiming:
    """One measurement: seconds per token or image."""

    model: str
    task: str
    name: str
    seconds: float
    per_second: float
    times_fp32: float
    bytes: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `models`."""
    known = ["reloaded_256", "vit_48m"]
    parser.add_argument(
        "--models",
        nargs="+",
        default=known,
        metavar="NAME",
        help="names in conf/model (default: both of 48 M)",
    )
    parser.add_argument(
        "--quantizers", nargs="+", default=["ternary_mean", "binary"], metavar="NAME",
        help="default: ternary_mean binary",
    )  # fmt: skip
    parser.add_argument(
        "--kernels", nargs="+", default=["cpu", "int8"], metavar="NAME", help="default: cpu int8"
    )
    parser.add_argument("--rounds", type=positive, default=5, help="the median of so many (default: 5)")
    parser.add_argument("--threads", type=positive, default=1)
    text = parser.add_argument_group("for models of text")
    text.add_argument("--tokens", type=positive, default=32, help="to generate (default: 32)")
    text.add_argument("--context", type=positive, default=256, help="of the prompt (default: 256)")
    text.add_argument("--vocabulary", type=positive, default=8000)
    images = parser.add_argument_group("for models of images")
    images.add_argument("--batch", type=positive, nargs="+", default=[1, 16], help="default: 1 16")
    images.add_argument("--shape", type=positive, nargs=3, default=[3, 32, 32], metavar=("C", "H", "W"))
    images.add_argument("--classes", type=positive, default=10)
    parser.add_argument("--output", type=Path, help="a folder for models.csv and models.md")


def run(options: argparse.Namespace, report: Report) -> None:
    """Measures, prints a table per model, and writes the files where asked to."""
    torch.set_num_threads(options.threads)
    kernels = []
    for name in options.kernels:
        reason = KERNELS.get(name).unavailable("cpu")
        if reason:
            report.line(f"kernel {name} is skipped: {reason}")
        else:
            kernels.append(name)
    for name in options.quantizers:
        if not QUANTIZERS[name].quantizes:
            raise UserError(f"--quantizers {name} leaves the weights as they are: there is nothing to freeze")
    clock = "CPU time" if options.threads == 1 else "wall time"
    report.line(
        f"{counted(options.threads, 'thread')}, {clock}, median of "
        f"{counted(options.rounds, 'round')}, torch {torch.__version__}"
    )
    rows: list[ModelTiming] = []
    for name in options.models:
        candidates, sizes = variants(name, kernels, options)
        rows += (found := measured(name, candidates, sizes, options))
        parameters = sizes[FULL] // 4
        report.table(models_table(f"{name}, {amount(parameters)} parameters", found))
    if options.output:
        save_rows(options.output / "models", [vars(row) for row in rows])
        report.line(f"written to {options.output}")


def variants(
    name: str, kernels: list[str], options: argparse.Namespace
) -> tuple[dict[str, Runs], dict[str, int]]:
    """The model in fp32 and frozen at every precision for every kernel, and the bytes of their files.

    With the kernel `cpu` also as one compiled call for a token or an image.
    """
    full = composed_model(name, "full", options).eval()
    found: dict[str, Any] = {FULL: full}
    for quantizer, kernel in itertools.product(options.quantizers, kernels):
        model = composed_model(name, quantizer, options).eval()
        if not freeze(model, "auto", KERNELS.get(kernel)):
            raise UserError(f"{name} has no layer that {quantizer} quantizes")
        found[f"{quantizer}, {kernel}"] = model
    sizes = {n: state_bytes(model) for n, model in found.items()}
    for name, model in list(found.items()):
        if name.endswith(", cpu") and getattr(model, "record", None) is not None:
            with contextlib.suppress(CannotCompileError):
                kind = CompiledDecoder if isinstance(model, Decoder) else CompiledClassifier
                found[f"{name}, compiled"], sizes[f"{name}, compiled"] = kind(model), sizes[name]
    return found, sizes


def composed_model(name: str, quantizer: str, options: argparse.Namespace) -> nn.Module:
    """A model of conf/model with the layers of a quantizer, untrained."""
    known = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
    if name not in known:
        raise UserError(f"unknown model '{name}'.{nearest(name, known)} Known: {', '.join(known)}")
    settings = settings_of(name, quantizer)
    model = build_model(settings, options)
    quantize(model, quantizer, settings.quantizer.include, settings.quantizer.exclude)
    return model


def state_bytes(model: nn.Module) -> int:
    """Bytes of all tensors that a file of the model holds; tied ones once."""
    tensors = {t.data_ptr(): t.nbytes for t in model.state_dict().values()}
    return sum(tensors.values())


def measured(
    name: str, candidates: dict[str, Runs], sizes: dict[str, int], options: argparse.Namespace
) -> list[ModelTiming]:
    """All tasks of a model; the candidates take turns."""
    rows = []
    for task, work, units in tasks(candidates[FULL], options):
        calls: dict[str, list[Call]] = {
            n: [functools.partial(work, model)] for n, model in candidates.items()
        }
        with torch.inference_mode():
            seconds = measure(calls, options.rounds, options.threads)
        for n, taken in seconds.items():
            each = taken / units
            rows.append(ModelTiming(name, task, n, each, 1 / each, seconds[FULL] / taken, sizes[n]))
    return rows


def tasks(model: Runs, options: argparse.Namespace) -> list[Task]:
    """What a model is for: a name, the work, and how many tokens or images that is."""
    draws = torch.Generator().manual_seed(0)
    if not isinstance(model, Decoder):
        found: list[Task] = []
        for batch in options.batch:
            images = torch.randn(batch, *options.shape, generator=draws)
            found.append((f"images, {batch} at once", functools.partial(classify, images), batch))
        return found
    if options.tokens >= options.context:
        raise UserError(f"--tokens={options.tokens} must be below --context={options.context}")
    prompt = torch.randint(options.vocabulary, (1, options.context), generator=draws)
    return [
        ("generate", functools.partial(write_tokens, prompt[0, :1].tolist(), options.tokens), options.tokens),
        ("prompt", functools.partial(classify, prompt), options.context),
    ]


def classify(inputs: torch.Tensor, model: Runs) -> Any:
    """One forward."""
    return model(inputs)


def write_tokens(prompt: list[int], count: int, model: Writer) -> list[int]:
    """Greedy generation after a prompt of one token."""
    return list(itertools.islice(generate(model, prompt, Sampling(temperature=0)), count))


def models_table(title: str, rows: list[ModelTiming]) -> Table:
    """A line per variant, two columns per task."""
    out = Table(box=box.SIMPLE_HEAD, title=title)
    out.add_column("weights, kernel")
    out.add_column("file", justify="right")
    tasks = list(dict.fromkeys(row.task for row in rows))
    for task in tasks:
        out.add_column(f"{task}: per second", justify="right")
        out.add_column("x fp32", justify="right")
    for name in dict.fromkeys(row.name for row in rows):
        mine = {row.task: row for row in rows if row.name == name}
        line = [
            cell
            for task in tasks
            for cell in (f"{mine[task].per_second:,.1f}", f"{mine[task].times_fp32:.2f}")
        ]
        out.add_row(name, size(mine[tasks[0]].bytes), *line)
    return out
