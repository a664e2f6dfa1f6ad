"""Seeds and differences that mix are told, with what repeats the older runs; other code has other rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitexp.report.compare import Comparison, compare
from bitexp.report.mixtures import older_runs
from bitexp.report.runs import read_runs
from bitexp.report.tables import precision_table
from bitexp.report.terminal import print_comparisons
from bitexp.report.wording import answer, caption
from bitexp.report.write import write_report
from tests.support.run_folders import WriteRun

OLD = {"started": "2026-11-20T10:00:00+00:00"}


@pytest.fixture
def compared(outputs: Path) -> Any:
    def only() -> Comparison:
        (comparison,) = compare(read_runs([outputs])[0])
        return comparison

    return only


def write_seeds(write_run: WriteRun, precision: str, **first: Any) -> None:
    """Two seeds of a precision, the first with something else in its attempt."""
    write_run(precision, 0, 0.9, made=first)
    write_run(precision, 1, 0.91)


CASES = {
    "versions of bitexp (other and s)": {"source": "other"},
    "versions of torch (2.12.0 and 2.13.0)": {"versions": {"torch": "2.12.0"}},
    "devices (NVIDIA H200 and AMD EPYC)": {"device": "NVIDIA H200"},
    "kernels (int8 and cpu)": {"kernel": "int8"},
}


@pytest.mark.parametrize(("words", "first"), CASES.items(), ids=list(CASES))
def test_seeds_that_mix_are_told_in_a_sentence_and_a_column(
    words: str, first: dict[str, Any], write_run: WriteRun, compared: Any
) -> None:
    usual = {"device": "AMD EPYC", "kernel": "cpu"}
    write_run("binary", 0, 0.9, made=usual | first)
    write_run("binary", 1, 0.91, made=usual)
    comparison = compared()
    said = caption(comparison)
    assert f"The seeds of binary mix {words}: the spread is not of seeds alone." in said
    assert ("rerun=older" in said) == words.startswith("versions")
    (row,) = precision_table(comparison).up_to().values()
    assert row["mixes"] in words.replace("versions of ", "")


def test_nothing_is_said_of_what_is_alike(write_run: WriteRun, compared: Any) -> None:
    for precision in ("full", "binary"):
        for seed in (0, 1):
            write_run(precision, seed, 0.9 + seed / 100)
    comparison = compared()
    assert "mix" not in caption(comparison)
    assert "rerun" not in caption(comparison)
    assert "mixes" not in precision_table(comparison).up_to().values()[0]
    assert older_runs(comparison) is None


@pytest.mark.parametrize(
    ("made", "noun"),
    [
        ({"source": "other"}, "versions of bitexp"),
        ({"versions": {"torch": "2.12.0"}}, "versions of torch"),
        ({"processor": "EPYC"}, "devices"),
    ],
)
def test_a_difference_to_what_was_made_otherwise_is_told(
    made: dict[str, Any], noun: str, write_run: WriteRun, compared: Any
) -> None:
    for seed in (0, 1):
        write_run("full", seed, 0.9 + seed / 100, made={"processor": "Xeon"})
        write_run("binary", seed, 0.8, made={"processor": "Xeon"} | made)
        write_run("int", seed, 0.8, made={"processor": "Xeon"})
    said = caption(compared())
    assert f"binary and full have different {noun}: the difference is not of precision alone." in said
    assert "int and" not in said


def test_of_many_rows_the_first_are_named(write_run: WriteRun, compared: Any) -> None:
    write_run("full", 0, 0.9, made={"processor": "Xeon"})
    for bits in range(2, 10):
        write_run("int", 0, 0.8, made={"processor": "EPYC"}, quantizer__weights__bits=bits)
    said = caption(compared())
    assert "int (bits 5), 4 more rows and full have different devices: " in said


def test_a_run_that_two_versions_have_made_is_a_mixture(write_run: WriteRun, compared: Any) -> None:
    path = write_run("binary", 0, 0.9)
    provenance = (path / "provenance.json").read_text()
    earlier = provenance.replace('"s"', '"earlier"')
    attempts = [text[text.index("[") + 1 : text.rindex("]")] for text in (earlier, provenance)]
    (path / "provenance.json").write_text(f'{{"attempts": [{",".join(attempts)}]}}')
    assert "The seeds of binary mix versions of bitexp (earlier and s)" in caption(compared())


def test_older_runs_are_listed_with_what_repeats_them(
    write_run: WriteRun, compared: Any, tmp_path: Path, capsys: Any
) -> None:
    write_run(
        "binary", 0, 0.9, typed=["rerun=true"], made={**OLD, "source": "other"}, result={"source": "other"}
    )
    write_run("binary", 1, 0.91)
    comparison = compared()
    table = older_runs(comparison)
    assert table is not None
    (row,) = table.values()
    assert (row["precision"], row["seed"], row["bitexp"]) == ("binary", 0, "other")
    assert row["command"] == "python -m bitexp quantizer=binary seed=0 rerun=older"
    page = write_report([comparison], comparison.runs, [], [], tmp_path / "report")
    for text in (page.read_text(), (page.parent / "report.md").read_text()):
        assert "python -m bitexp quantizer=binary seed=0 rerun=older" in text
    from bitexp.common.console import Report

    print_comparisons(Report(), [comparison])
    said = " ".join(capsys.readouterr().out.split())
    assert "The same commands with rerun=older repeat what older versions have made." in said
    assert "seeds mix" in said


def test_other_code_has_rows_of_its_own_and_the_newest_is_told(write_run: WriteRun, compared: Any) -> None:
    for seed in (0, 1):
        write_run("full", seed, 0.9 + seed / 100)
        write_run("binary", seed, 0.8 + seed / 50, made={**OLD, "code": {"quantizer": "0ld"}})
    write_run("binary", 0, 0.5, made={"code": {"quantizer": "new"}})
    comparison = compared()
    assert comparison.axes.variant == ("quantizer.code",)
    rows = {
        row.cell.variant: row.cell.score.mean for row in comparison.rows if row.cell.precision == "binary"
    }
    assert rows == {("0ld",): pytest.approx(0.81), ("new",): pytest.approx(0.5)}
    assert all(row.versus is not None for row in comparison.rows if row.cell.precision == "binary")
    assert "the newest is binary (code new)." in caption(comparison)
    assert answer(comparison).startswith("Best test/accuracy: full with")


def test_a_model_of_other_code_is_no_baseline(write_run: WriteRun, compared: Any) -> None:
    write_run("full", 0, 0.9, made={"code": {"model": "a"}})
    write_run("binary", 0, 0.8, made={"code": {"model": "b"}})
    comparison = compared()
    assert comparison.axes.setting == ("model.code",)
    assert [row.versus for row in comparison.rows] == [None, None]


@pytest.mark.parametrize("code", [None, 3, [], {"quantizer": {"x": [1]}}, {"quantizer": None}])
def test_whatever_is_said_of_code_is_read(code: Any, write_run: WriteRun, compared: Any) -> None:
    write_run("binary", 0, 0.8, made={"code": code})
    write_run("binary", 1, 0.8)
    assert caption(compared())
