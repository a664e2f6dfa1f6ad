"""The model benchmark: a frozen model beside the same one in fp32."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from bitexp.__main__ import main
from tests.support.processes import InProcess, Program


@pytest.fixture
def bench(in_process: InProcess) -> Program:
    call = in_process(main, "bitexp")
    return lambda *words: call("bench", *words)


def test_a_text_and_an_image_model(bench: Program, tmp_path: Path) -> None:
    words = (
        "models",
        "--models",
        "decoder",
        "vit",
        "--rounds",
        "1",
        "--batch",
        "2",
        "--shape",
        "1",
        "8",
        "8",
    )
    text = ("--tokens", "3", "--context", "8", "--vocabulary", "50", "--kernels", "int8", "reference")
    ended = bench(*words, *text, "--output", tmp_path)
    assert ended.code == 0, ended.err
    assert "136,010 parameters" in ended.out
    with (tmp_path / "models.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["task"] for row in rows} == {"generate", "prompt", "images, 2 at once"}
    full = {row["task"]: row for row in rows if row["name"] == "full, fp32"}
    for row in rows:
        ratio = float(full[row["task"]]["seconds"]) / float(row["seconds"])
        assert float(row["times_fp32"]) == pytest.approx(ratio)
        assert float(row["per_second"]) == pytest.approx(1 / float(row["seconds"]))
    sizes = {row["name"]: int(row["bytes"]) for row in rows if row["model"] == "vit"}
    assert sizes["full, fp32"] == 4 * 136_010
    assert sizes["binary, reference"] < sizes["ternary_mean, reference"] < sizes["full, fp32"] / 5


@pytest.mark.slow
def test_more_tokens_than_the_context_holds(bench: Program) -> None:
    ended = bench("models", "--models", "decoder", "--tokens", "9", "--context", "8", "--rounds", "1")
    assert ended.code == 2
    assert "--tokens=9 must be below --context=8" in ended.err
