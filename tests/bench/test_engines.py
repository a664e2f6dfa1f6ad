"""The benchmark of a language model in other engines, of the same packed file."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from bitexp.__main__ import main
from bitexp.deploy.description import Description
from tests.support.exports import described, packed
from tests.support.processes import InProcess, Program

MLP = {"shape": (1, 8, 8), "classes": 5, "hidden": [24], "activation": "relu", "dropout": 0.0}
IMAGE = {"channels": 1, "size": [8, 8], "divide_by": 16, "mean": [0.3], "std": [0.4]}


@pytest.fixture
def bench(in_process: InProcess) -> Program:
    call = in_process(main, "bitexp")
    return lambda *words: call("bench", "engines", *words, "--rounds", 1, "--kernel", "int8")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_engines_read_and_write_beside_bitexp(bench: Program, tmp_path: Path) -> None:
    source = packed(tmp_path, described("b158"))
    ended = bench(source.path, "--runtime", "c", "--prompt", 5, "--tokens", 3, "--output", tmp_path / "out")
    assert ended.code == 0, ended.err
    with (tmp_path / "out" / "engines.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["bitexp, int8", "c"]
    assert all(float(row["reads"]) > 0 and float(row["writes"]) > 0 for row in rows)
    assert int(rows[0]["bytes"]) == source.path.stat().st_size
    assert "goes layer by layer" in ended.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--runtime", "torch"), "torch computes all of a text anew for every token"),
        (("--runtime", "llama.cpp"), "train with quantizer.norm=rms"),
        (("--prompt", 64), "--prompt=64 must be below the context of 64"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    bench: Program, tmp_path: Path, words: tuple[object, ...], message: str
) -> None:
    ended = bench(packed(tmp_path, described("ternary_mean")).path, *words)
    assert ended.code == 2
    assert message in ended.err


def test_a_model_of_images_is_refused(bench: Program, tmp_path: Path) -> None:
    source = packed(tmp_path, Description("mlp", MLP, "ternary_mean", exclude=["head"]), dict(IMAGE))
    ended = bench(source.path)
    assert ended.code == 2
    assert "is not a language model" in ended.err
