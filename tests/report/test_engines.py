"""What runs compute in other engines, as a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitexp.common.files import write_json
from bitexp.report.columns import SHORT
from bitexp.report.compare import compare
from bitexp.report.engines import engine_table
from bitexp.report.runs import read_runs

Write = Callable[..., Path]


def kept(engine: str, **figures: float) -> dict[str, Any]:
    """A measurement of an engine, as `evaluate` keeps it."""
    figures = {"same": 1.0, "flaws": 0.0, "per_second": 1234.0, "bytes": 2000.0, **figures}
    return {f"engine/{engine}": {"metrics": {f"engine/{engine}/{k}": v for k, v in figures.items()}}}


def test_engines_are_rows_for_every_precision(write_run: Write, outputs: Path) -> None:
    for seed in (0, 1):
        folder = write_run("ternary_mean", seed)
        chip = kept("cortex-m4", accuracy=0.5, flash_bytes=15056.0, instructions=3e6)
        write_json(
            folder / "measurements.json", {**kept("c", accuracy=0.8 + seed / 10, difference=-0.001), **chip}
        )
    write_json(write_run("full", 0) / "measurements.json", kept("c", accuracy=0.9, same=0.5, flaws=1.0))
    (comparison,) = compare(read_runs([outputs])[0])
    table = engine_table(comparison)
    assert table is not None
    shown = table.up_to(SHORT)
    titles = [column.title for column in shown.columns]
    rows = {(row[0], row[1]): dict(zip(titles, row, strict=True)) for row in shown.texts()}
    assert set(rows) == {("full", "c"), ("ternary_mean", "c"), ("ternary_mean", "cortex-m4")}
    assert rows["full", "c"]["verdict"] == "computes something else"
    assert rows["full", "c"]["same"] == "50.00%"
    ternary, chip = rows["ternary_mean", "c"], rows["ternary_mean", "cortex-m4"]
    assert ternary["accuracy"] == "0.850 ± 0.071"
    assert ternary["difference"] == "-0.0010"
    assert ternary["verdict"] == "as promised"
    assert ternary["bytes"] == "2.0 kB"
    assert ternary["flash"] == ""
    assert (chip["flash"], chip["instructions"]) == ("15.1 kB", "3.00 M")
    assert "bits per byte" not in titles


def test_there_is_no_table_where_no_engine_ran(write_run: Write, outputs: Path) -> None:
    write_run("full", 0)
    (comparison,) = compare(read_runs([outputs])[0])
    assert engine_table(comparison) is None
