"""Engines beside bitexp on the data that a run held out: the rows of a table, and what would be wrong."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
from bitexp.track.folder import RunFolder
from bitexp.track.measurements import keep

TEXT_WINDOWS, IMAGES = 24, 10_000
"""What is looked at unless more or less is asked for."""
PROMPT, WRITTEN = 16, 100
"""Tokens of held-out text that are continued, and by how many."""


@dataclass(frozen=True)
class Compared:
    """An engine beside bitexp."""

    found: Agreement
    flaws: list[str]
    """What would not be so were the engine right."""
    bytes: int
    """Of the files that it reads."""
    bytes_per_token: float | None
    """Of text."""
    runner: Engine

    @property
    def quality(self) -> tuple[str, tuple[float, float]]:
        """The metric, of bitexp and of the engine."""
        if self.bytes_per_token is not None:
            return "bits_per_byte", self.found.bits_per_byte(self.bytes_per_token)
        ours, theirs = (right / self.found.count for right in self.found.right)
        return "accuracy", (ours, theirs)

    @property
    def speeds(self) -> tuple[float, float]:
        """Tokens or images a second, of bitexp and of the engine."""
        ours, theirs = (self.found.count / seconds if seconds else 0.0 for seconds in self.found.seconds)
        return ours, theirs

    def metrics(self, engine: str) -> dict[str, float]:
        """All figures by name: `engine/ENGINE/...`."""
        (name, (ours, theirs)), found = self.quality, self.found
        figures = {
            name: theirs,
            "difference": theirs - ours,
            "same": 1 - found.other / found.count,
            "unsure": found.unsure / found.count,
            "rms": found.rms,
            "divergence": found.divergence / found.count,
            "samples": found.count,
            "flaws": len(self.flaws),
            "bytes": self.bytes,
            "per_second": self.speeds[1],
            "per_second_bitexp": self.speeds[0],
            **self.runner.measures,
        }
        return {f"engine/{engine}/{key}": float(value) for key, value in figures.items()}

    def row(self) -> list[str]:
        """The engine's figures."""
        found, text = self.found, self.found.text
        cells = [f"{self.quality[1][1]:.4f}"]
        if text is not None:
            cells.append("same" if text.place is None else f"to token {text.place}")
        same = f"{found.count - found.other:,} of {found.count:,}"
        apart = [f"{found.rms:.1e}", f"{found.divergence / found.count:.1e}"]
        return [*cells, same, "", *apart, f"{self.speeds[1]:,.0f}", size(self.bytes)]

    def own_row(self, bytes: int) -> list[str]:
        """bitexp's own."""
        text = [""] if self.found.text is not None else []
        figures = [f"{self.speeds[0]:,.0f}", size(bytes)]
        return [f"{self.quality[1][0]:.4f}", *text, "", f"{self.found.unsure:,}", "", "", *figures]


def tell(
    packed: Packed,
    engines: Mapping[str, type[Engine]],
    folder: Path | None = None,
    samples: int | None = None,
    strict: bool = True,
) -> None:
    """Compares engines with bitexp and prints a table; the exit code is 1 where one computes something else.

    Figures are kept in the run's folder, but for those of what somebody else exported.

    Args:
        folder: what was exported for the engine; None: exports it.
        strict: an engine that cannot run the model is an error, and not left out.

    Raises:
        UserError: no data, or no engine that could run the model.
    """
    run = packed.path.parent
    if not (run / "config.yaml").exists():
        raise UserError(
            f"{packed.path} lies in no run's folder, so that it is not known what it was tested on"
        )
    data = data_of(run)
    report, remarked, flawed, left_out = Report(), [], [], []
    table = Table(box=None, pad_edge=False)
    headings = ("bits per byte", "text") if "tokenizer" in packed.preprocessing else ("accuracy",)
    for heading in ("runtime", *headings, "same", "unsure", "rms", "KL", "per second", "bytes"):
        table.add_column(heading, justify="left" if heading in ("runtime", "text") else "right")
    for name, engine in engines.items():
        try:
            compared = compare(packed, engine, data, samples, folder)
        except UserError as error:
            if strict:
                raise
            left_out.append(f"{name} is left out: {error}")
            continue
        if folder is None and packed.path == RunFolder(run).packed:
            keep(run, f"engine/{name}", {"samples": samples}, compared.metrics(name))
        if not table.rows:
            table.add_row("bitexp", *compared.own_row(packed.path.stat().st_size))
        table.add_row(name, *compared.row())
        remarked += [f"{name}: {compared.runner.remarks}"] if compared.runner.remarks else []
        flawed += [f"{name} computes something else: {flaw}" for flaw in compared.flaws]
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


def compare(
    packed: Packed, engine: type[Engine], data: Any, samples: int | None = None, folder: Path | None = None
) -> Compared:
    """Runs an engine beside bitexp.

    Args:
        samples: windows of text or images. folder: what was exported for it; None: exports it.

    Raises:
        UserError: it is not installed, or it cannot run this model.
    """
    text = "tokenizer" in packed.preprocessing
    with tempfile.TemporaryDirectory(prefix="bitexp-export-") as scratch:
        if folder is None:
            folder, exporter = Path(scratch) / engine.target, build(engine.target, {})
            try:
                exporter.check(packed.model, packed.preprocessing.get("tokenizer"))
                write(exporter, packed, folder)
            except InexpressibleError as error:
                raise UserError(f"it cannot run this model: {error}") from None
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
    return Compared(found, found.flaws(per_token), count, per_token, runner)


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
