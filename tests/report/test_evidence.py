"""Verdicts in tables: by which margin, what was tested, and what is said where a margin came later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bitexp.report.compare import Comparison, compare
from bitexp.report.evidence import evidence_table
from bitexp.report.runs import read_runs
from bitexp.report.tables import precision_table
from bitexp.report.wording import answer, caption
from tests.support.run_folders import WriteRun

SCORES = {
    "full": [0.900, 0.902, 0.901, 0.899],
    "full_norm": [0.901, 0.9025, 0.9015, 0.8995],
    "binary": [0.850, 0.853, 0.849, 0.850],
    "ternary_mean": [0.890, 0.911, 0.907, 0.889],
}


@pytest.fixture
def compared(outputs: Path) -> Callable[..., Comparison]:
    """The comparison of all runs that were written."""

    def only(margin: float | None = None) -> Comparison:
        (comparison,) = compare(read_runs([outputs])[0], margin=margin)
        return comparison

    return only


def write(write_run: WriteRun, **made: Any) -> list[Path]:
    return [
        write_run(quantizer, seed, score, made=made)
        for quantizer, scores in SCORES.items()
        for seed, score in enumerate(scores)
    ]


def words(comparison: Comparison) -> dict[str, str | None]:
    return {row.cell.precision: row.verdict and row.verdict.word for row in comparison.rows}


def test_rows_have_verdicts_within_the_margin_that_runs_began_with(
    write_run: WriteRun, compared: Any
) -> None:
    write(write_run, margin=0.005)
    comparison = compared()
    assert words(comparison) == {
        "full": None,
        "full_norm": "equivalent",
        "binary": "worse",
        "ternary_mean": "undecided",
    }
    (shown,) = [row for row in precision_table(comparison).values() if row["precision"] == "ternary_mean"]
    assert shown["verdict"] == "undecided"
    assert shown["margin"] == 0.005
    assert shown["seeds_needed"] > 4
    assert [row["seeds_needed"] for row in precision_table(comparison).values()].count(None) == 3
    said = caption(comparison)
    assert "the difference is less than 0.005" in said
    assert f"with a power of 80%: ternary_mean {shown['seeds_needed']}." in said
    assert "was not set before" not in said
    assert "+0.0006 to full (equivalent within 0.005; " in answer(comparison)


def test_of_a_metric_that_is_to_be_small_the_higher_value_is_worse(
    write_run: WriteRun, compared: Any
) -> None:
    for seed in range(4):
        write_run("full", seed, 1.2 + seed / 500, better="min", made={"margin": 0.02})
        write_run("binary", seed, 1.3 + seed / 300, better="min", made={"margin": 0.02})
    assert words(compared())["binary"] == "worse"


def test_without_a_margin_there_is_no_verdict_unless_one_is_given(write_run: WriteRun, compared: Any) -> None:
    write(write_run)
    comparison = compared()
    assert set(words(comparison).values()) == {None}
    assert "verdict" not in [column.key for column in precision_table(comparison).up_to().columns]
    assert "Equivalent" not in caption(comparison)
    given = compared(0.005)
    assert words(given)["full_norm"] == "equivalent"
    assert "This margin was not set before all of the runs: of 16, 16 began with none." in caption(given)


def test_a_margin_that_changed_is_that_of_the_first_run(write_run: WriteRun, compared: Any) -> None:
    for seed in range(4):
        for quantizer in ("full", "full_norm"):
            made = {"margin": 0.005 if seed < 3 else 0.5, "started": f"2026-11-2{seed}T10:00:00+00:00"}
            write_run(quantizer, seed, SCORES[quantizer][seed], made=made)
    comparison = compared()
    assert comparison.margin.value == 0.005
    assert comparison.margin.remark.endswith("of 8, 2 began with 0.5.")


@pytest.mark.parametrize("margin", ["much", -1.0, 0, True, float("nan"), [1]])
def test_what_is_no_margin_is_none(margin: Any, write_run: WriteRun, compared: Any) -> None:
    write_run("full", 0, 0.9, made={"margin": margin})
    assert compared().margin is None


def test_the_table_of_tests_has_all_of_them(write_run: WriteRun, compared: Any) -> None:
    labels = torch.arange(100, dtype=torch.uint8) % 10
    for folder in write(write_run, margin=0.005):
        prediction = labels.clone()
        if "binary" in (folder / "config.yaml").read_text():
            prediction[:8] = 9 - labels[:8]
        prediction[50:53] = 0
        save_file({"prediction": prediction, "label": labels}, folder / "predictions.safetensors")
    table = evidence_table(compared())
    assert table is not None
    rows = {row["precision"]: row for row in table.values()}
    assert list(rows) == ["full_norm", "binary", "ternary_mean"]
    binary = rows["binary"]
    assert (binary["only_ours"], binary["only_base"]) == (0, 8)
    assert binary["p_mcnemar"] == pytest.approx(2 / 2**8 * 4 / 2)
    assert binary["p_signs"] == 2 / 2**4
    assert binary["bca_low"] < binary["difference"] < binary["bca_high"] < 0
    assert binary["low"] < binary["tost_low"] < binary["tost_high"] < binary["high"]
    assert (rows["full_norm"]["only_ours"], rows["full_norm"]["p_mcnemar"]) == (0, 1)
    assert "cannot be below 0.12 with 4 seeds" in table.caption
    assert "McNemar" in table.caption


def test_runs_that_kept_no_predictions_or_damaged_ones_still_report(
    write_run: WriteRun, compared: Any
) -> None:
    folders = write(write_run, margin=0.005)
    (folders[0] / "predictions.safetensors").write_bytes(b"\xff" * 100)
    save_file({"prediction": torch.zeros(3)}, folders[1] / "predictions.safetensors")
    save_file({"prediction": torch.zeros(3), "label": torch.zeros(2)}, folders[2] / "predictions.safetensors")
    table = evidence_table(compared())
    assert table is not None
    assert all(row["p_mcnemar"] is row["only_ours"] is None for row in table.values())
    assert "p (McNemar)" not in [column.title for column in table.up_to().columns]


def test_single_seeds_have_nothing_that_could_be_tested(write_run: WriteRun, compared: Any) -> None:
    for quantizer in ("full", "binary"):
        write_run(quantizer, 0, 0.9, made={"margin": 0.005})
    comparison = compared()
    assert words(comparison)["binary"] == "undecided"
    assert evidence_table(comparison) is None
    assert "A single seed cannot test a difference." in caption(comparison)
