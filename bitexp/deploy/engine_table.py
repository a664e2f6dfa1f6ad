"""Engines beside bitexp on the data that a run held out: the rows of a table, and what would be wrong."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.common.exit import Progress
from bitexp.common.files import read_yaml
from bitexp.common.format import path_text, size
from bitexp.data import load_data
from bitexp.deploy.agreement import (
    MARGIN_OF_CLASSES,
    MARGIN_OF_TOKENS,
    Agreement,
    Anew,
    agreement,
    continuation,
)
from bitexp.deploy.engines import Engine
from bitexp.deploy.exporters.exporter import InexpressibleError, Packed
from bitexp.deploy.exporters.writing import build, write
from bitexp.models.decoder import Decoder

TEXT_WINDOWS, IMAGES = 24, 10_000
"""What is looked at unless more or less is asked for."""
PROMPT, WRITTEN = 16, 100
"""Tokens of held-out text that are continued, and by how many."""


def tell(
    packed: Packed,
    engines: Mapping[str, type[Engine]],
    folder: Path | None = None,
    samples: int | None = None,
    strict: bool = True,
) -> None:
    """Compares engines with bitexp and prints a table; the exit code is 1 where one computes something else.

    Args:
        strict: an engine that cannot run the model is an error, and not left out.

    Raises:
        UserError: no data, or no engine that could run the model.
    """
    if not (packed.path.parent / "config.yaml").exists():
        raise UserError(
            f"{packed.path} lies in no run's folder, so that it is not known what it was tested on"
        )
    data = data_of(packed.path.parent)
    report, remarked, flawed, left_out = Report(), [], [], []
    table = Table(box=None, pad_edge=False)
    headings = ("bits per byte", "text") if "tokenizer" in packed.preprocessing else ("accuracy",)
    for heading in ("runtime", *headings, "same", "unsure", "rms", "KL", "per second", "bytes"):
        table.add_column(heading, justify="left" if heading in ("runtime", "text") else "right")
    for name, engine in engines.items():
        try:
            found, flaws, row, remarks = compared(packed, engine, data, samples, folder)
        except UserError as error:
            if strict:
                raise
            left_out.append(f"{name} is left out: {error}")
            continue
        if not table.rows:
            table.add_row("bitexp", *own_row(found, packed.path.stat().st_size, data))
        table.add_row(name, *row)
        remarked += [f"{name}: {remarks}"] if remarks else []
        flawed += [f"{name} computes something else: {flaw}" for flaw in flaws]
    report.line(f"{packed.name} · {path_text(packed.path)}")
    report.table(table, ["KL", "rms", "unsure"])
    margin = MARGIN_OF_TOKENS if "tokenizer" in packed.preprocessing else MARGIN_OF_CLASSES
    report.sentences(
        f"same: predictions like bitexp's; unsure: those of bitexp's whose margin is below {margin:g}; "
        "rms, KL: of "
        "logits and distributions, from bitexp's. Speed is that of whole batches, bitexp's with the "
        "kernel reference."
    )
    for line in [*remarked, *left_out, *flawed]:
        report.sentences(line)
    if flawed:
        Progress.note(1)


def compared(
    packed: Packed, engine: type[Engine], data: Any, samples: int | None = None, folder: Path | None = None
) -> tuple[Agreement, list[str], list[str], str]:
    """Runs an engine beside bitexp.

    Args:
        samples: windows of text or images. folder: what was exported for it; None: exports it.

    Returns:
        the comparison, what would not be so were the engine right, its row of the table, its remarks.

    Raises:
        UserError: it is not installed, or it cannot run this model.
    """
    text = "tokenizer" in packed.preprocessing
    with tempfile.TemporaryDirectory(prefix="bitexp-export-") as scratch:
        if folder is None:
            folder, exporter = Path(scratch) / engine.target, build(engine.target, {})
            try:
                exporter.check(packed.model, packed.preprocessing.get("tokenizer"))
            except InexpressibleError as error:
                raise UserError(f"it cannot run this model: {error}") from None
            write(exporter, packed, folder)
        runner, ours = engine(folder), packed.model
        theirs = runner.outputs
        batches = list(held_out(data, samples or (TEXT_WINDOWS if text else IMAGES)))
        if not batches:
            raise UserError("the data have no test part")
        found = agreement(ours, theirs, batches, MARGIN_OF_TOKENS if text else MARGIN_OF_CLASSES)
        if text and isinstance(ours, Decoder):
            room = min(WRITTEN, ours.context - PROMPT)
            prompt = batches[0][0][0, :PROMPT].tolist()
            found.text = continuation(Anew(ours), runner.text() or Anew(theirs), prompt, room)
        count = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    per_token = data.bytes_per_token("test") if text else None
    return found, found.flaws(per_token), row(found, 1, count, data), runner.remarks


def own_row(found: Agreement, count: int, data: Any) -> list[str]:
    """bitexp's own figures."""
    cells = row(found, 0, count, data)
    places = len(cells) - 6
    text = [""] if found.text is not None else []
    return [cells[0], *text, "", f"{found.unsure:,}", "", "", *cells[places + 4 :]]


def row(found: Agreement, which: int, count: int, data: Any) -> list[str]:
    """The figures of bitexp (0) or of the engine (1)."""
    if found.text is None:
        cells = [f"{found.right[which] / found.count:.4f}"]
    else:
        place = found.text.place
        cells = [f"{found.bits_per_byte(data.bytes_per_token('test'))[which]:.4f}"]
        cells.append("same" if place is None else f"to token {place}")
    seconds = found.seconds[which]
    return [
        *cells,
        f"{found.count - found.other:,} of {found.count:,}",
        "",
        f"{(found.squares / found.count) ** 0.5:.1e}",
        f"{found.divergence / found.count:.1e}",
        f"{found.count / seconds if seconds else 0:,.0f}",
        size(count),
    ]


def data_of(run: Path) -> Any:
    """The data of a run, as its config has them.

    Raises:
        UserError: the config is damaged, or the data are not there.
    """
    config = read_yaml(run / "config.yaml")
    section = config.get("data") if isinstance(config, dict) else None
    if not isinstance(section, dict) or not isinstance(section.get("name"), str):
        raise UserError(f"{run / 'config.yaml'} is damaged: it does not say on what data")
    assert isinstance(config, dict)
    arguments = {key: value for key, value in section.items() if key != "name"}
    try:
        data = load_data(section["name"], seed=config.get("seed", 0), **arguments)
    except TypeError as error:
        raise UserError(
            f"{run / 'config.yaml'} does not describe data that can be read here: {error}"
        ) from None
    data.locate()
    data.setup()
    return data


def held_out(data: Any, samples: int) -> Iterator[tuple[Any, Any]]:
    """The first samples of the test part, in batches."""
    left = samples
    for inputs, targets in data.test_dataloader():
        yield inputs[:left], targets[:left]
        left -= len(inputs)
        if left <= 0:
            return
