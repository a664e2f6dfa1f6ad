"""What was measured of runs later, as a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bitexp.common.files import write_json
from bitexp.report.columns import SHORT
from bitexp.report.compare import compare
from bitexp.report.damage import damage_table
from bitexp.report.runs import read_runs

Write = Callable[..., Path]

METRICS = {
    "attack/accuracy": 0.9,
    "attack/loss": 0.3,
    "attack/codes/accuracy_10": 0.8,
    "attack/codes/accuracy_10_std": 0.1,
    "attack/codes/loss_10": 0.7,
    "attack/codes/flips_to_chance": 20.0,
    "attack/codes/accuracy_chosen": 0.3,
    "attack/codes_clamped/flips_to_chance": 30.0,
    "attack/all/found": 0.25,
    "attack_pack2/codes/flips_to_chance": 5.0,
    "corrupted/accuracy": 0.6,
    "corrupted/jpeg": 0.5,
    "corrupted/jpeg_5": 0.4,
}


def test_later_measurements_are_columns_for_every_precision(write_run: Write, outputs: Path) -> None:
    for seed in (0, 1):
        folder = write_run("ternary_mean", seed)
        metrics = {**METRICS, "attack/codes/reached": float(seed), "corrupted/accuracy": 0.6 + seed / 10}
        write_json(folder / "measurements.json", {"attack": {"metrics": metrics}})
    write_run("full", 0)
    (comparison,) = compare(read_runs([outputs])[0])
    table = damage_table(comparison)
    assert table is not None
    rows = {row["precision"]: row for row in table.values()}
    assert rows["ternary_mean"]["attack/codes/accuracy_10"] == 0.8
    assert rows["full"]["attack/codes/accuracy_10"] is None
    texts = dict(zip([c.title for c in table.columns], table.texts()[1], strict=True))
    assert texts["corrupted"] == "0.650 ± 0.071"
    assert texts["flips to chance"] == "> 20.0 ± 0.0"  # one of the runs did not get there
    assert texts["flips to chance, pack2"] == "5.0 ± 0.0"
    assert texts["found, all tensors"] == "25.0%"
    assert (texts["loss, 0 flips"], texts["loss, 10 flips"]) == ("0.300 ± 0.000", "0.700 ± 0.000")
    shown = [column.title for column in table.up_to(SHORT).columns]
    assert shown == [
        "precision",
        "test/accuracy",
        "10 flips",
        "flips to chance",
        "after these flips",
        "corrupted",
    ]


def test_there_is_no_table_of_nothing(write_run: Write, outputs: Path) -> None:
    write_run("full", 0)
    (comparison,) = compare(read_runs([outputs])[0])
    assert damage_table(comparison) is None
