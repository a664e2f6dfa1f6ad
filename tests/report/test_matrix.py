"""The matrix of experiments by precisions: a line each, and bold letters only where they are earned."""

from __future__ import annotations

from pathlib import Path

from bitexp.report.columns import SHORT
from bitexp.report.compare import compare
from bitexp.report.formats import latex, markdown, web
from bitexp.report.matrix import matrix
from bitexp.report.runs import read_runs
from tests.support.run_folders import WriteRun


def test_bold_is_what_is_equivalent_or_better(write_run: WriteRun, outputs: Path) -> None:
    for hidden, made in (([16], {"margin": 0.005}), ([32], {"margin": 0.005})):
        for seed in range(4):
            for quantizer, score in (
                ("full", 0.9), ("full_norm", 0.9005), ("binary", 0.85 if hidden == [16] else 0.95),
            ):  # fmt: skip
                noise = {"full": 0, "full_norm": 1, "binary": 5}[quantizer] * (seed % 2) / 1e4
                write_run(quantizer, seed, score + seed / 1e3 + noise, made=made, model__hidden=hidden)
        write_run("ternary_mean", 0, 0.99, made=made, model__hidden=hidden)  # the best, of a single seed
    table = matrix(compare(read_runs([outputs])[0]))
    assert table is not None
    assert [column.title for column in table.up_to().columns] == [
        "experiment", "setting", "metric", "full", "full_norm", "binary", "ternary_mean",
    ]  # fmt: skip
    lines = [line for line in latex(table.up_to(SHORT)).splitlines() if line.startswith("made")]
    small, large = ([r"\textbf" in cell for cell in line.split("&")[3:]] for line in lines)
    assert small == [False, True, False, False]
    assert large == [False, True, True, False]
    assert r"\textbf{0.9517 $\pm$ 0.0014}" in lines[1]
    assert web(table).count("<strong>") == markdown(table).count("**") / 2 == 3


def test_variants_have_columns_of_their_own_and_a_single_line_is_no_matrix(
    write_run: WriteRun, outputs: Path
) -> None:
    write_run("full", 0, 0.9)
    for granularity in ("tensor", "channel"):
        write_run("binary", 0, 0.9, quantizer__weights__granularity=granularity)
    assert matrix(compare(read_runs([outputs])[0])) is None
    write_run("full", 0, 0.9, name="other")
    table = matrix(compare(read_runs([outputs])[0]))
    assert table is not None
    assert [column.title for column in table.columns][3:] == [
        "full", "binary (granularity channel)", "binary (granularity tensor)",
    ]  # fmt: skip
    assert [list(row.values())[3:] for row in table.values()] == [[0.9, 0.9, 0.9], [0.9, None, None]]
