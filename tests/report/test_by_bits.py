"""Many precisions at once: groups by the bits of their weights, and the front."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from bitexp.report.by_bits import bits_text, by_bits_table, group_of
from bitexp.report.compare import Comparison, compare
from bitexp.report.runs import read_runs
from bitexp.report.write import write_report

PRECISIONS = (  # name, bits of weights, of activations, accuracy, bytes
    ("full", 32.0, 32, 0.90, 400_000), ("full_norm", 32.0, 32, 0.91, 400_000),
    ("int", 3.907, 8, 0.89, 50_000),
    ("lsq", 4.0, 8, 0.90, 50_100), ("paretoq_3bit", 3.0, 32, 0.88, 38_000), ("seq", 2.0, 8, 0.87, 25_000),
    ("ternary_mean", 1.585, 8, 0.88, 20_000), ("ternary_median", 1.585, 8, 0.87, 20_000),
    ("sparse_ternary", 1.546, 8, 0.86, 20_000), ("ternary_int4", 1.585, 4, 0.86, 20_000),
    ("sherry", 1.25, 8, 0.85, 16_000), ("binary", 1.0, 8, 0.86, 12_500), ("bnn", 1.0, 1, 0.70, 12_000),
)  # fmt: skip
Write = Callable[..., Path]


@pytest.fixture
def compared(write_run: Write, outputs: Path) -> Comparison:
    """A comparison of many precisions, two seeds each."""
    for name, weight, activation, accuracy, size in PRECISIONS:
        for seed in (0, 1):
            metrics = {
                "test/accuracy": accuracy + seed / 1000,
                "size/total_bytes": size,
                "size/weight_bits": weight,
                "size/activation_bits": activation,
            }
            write_run(name, seed, result={"metrics": metrics})
    (comparison,) = compare(read_runs([outputs])[0])
    return comparison


def test_rows_are_grouped_by_the_bits_of_their_weights_the_best_first(compared: Comparison) -> None:
    table = by_bits_table(compared)
    assert table is not None
    rows = [(value["weight_bits"], value["precision"]) for value in table.values()]
    assert rows == [
        (1, "binary"), (1, "bnn"), (1.25, "sherry"), (1.55, "sparse_ternary"), (1.58, "ternary_mean"),
        (1.58, "ternary_median"), (1.58, "ternary_int4"), (2, "seq"), (3, "paretoq_3bit"), (4, "lsq"),
        (4, "int"), (32, "full_norm"), (32, "full"),
    ]  # fmt: skip
    activations = {value["precision"]: value["activation_bits"] for value in table.values()}
    assert (activations["bnn"], activations["ternary_int4"], activations["paretoq_3bit"]) == (1, 4, 32)


def test_the_front_is_what_nothing_beats_at_its_bytes_or_fewer(compared: Comparison) -> None:
    table = by_bits_table(compared)
    assert table is not None
    front = [value["precision"] for value in table.values() if "bytes" in value["front"]]
    assert front == ["binary", "bnn", "ternary_mean", "lsq", "int", "full_norm"]


def test_the_page_has_the_table_and_names_along_the_front(compared: Comparison, tmp_path: Path) -> None:
    write_report([compared], [], [], [], tmp_path / "report")
    with (tmp_path / "report" / "tables" / "made_up-by-bits.csv").open() as file:
        assert [row["precision"] for row in csv.DictReader(file)][:2] == ["binary", "bnn"]
    drawing = (tmp_path / "report" / "plots" / "made_up-quality.svg").read_text()
    assert all(name in drawing for name in ("1.58 bits", "full precision", "ternary_mean", "full_norm"))
    assert "sparse_ternary" not in drawing


def test_few_rows_and_runs_that_know_no_bits_make_no_groups(write_run: Write, outputs: Path) -> None:
    for name, *_ in PRECISIONS:
        write_run(name, 0, 0.9)
    (comparison,) = compare(read_runs([outputs])[0])
    assert by_bits_table(comparison) is None
    assert group_of(comparison.rows[0].cell) is None


@pytest.mark.parametrize(
    ("bits", "text"), [(1, "1"), (1.25, "1.25"), (1.58, "1.58"), (4, "4"), (32, "float")]
)
def test_bits_are_written_as_people_do(bits: float, text: str) -> None:
    assert bits_text(bits) == text
