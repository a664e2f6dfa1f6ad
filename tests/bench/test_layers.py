"""The layer benchmark: every implementation is right, floors are there, files say what the table says."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from bitexp.__main__ import main
from bitexp.bench import layers
from bitexp.bench.peers import PEERS
from bitexp.kernels.cpu.jit import missing
from tests.support.processes import InProcess, Program

SMALL = ("layers", "--shapes", "64x256", "--rounds", "1", "--cache", "hot")


@pytest.fixture
def bench(in_process: InProcess) -> Program:
    call = in_process(main, "bitexp")
    return lambda *words: call("bench", *words)


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("tokens", [1, 3])
def test_an_implementation_computes_the_layer(name: str, tokens: int) -> None:
    codes = torch.randint(-1, 2, (64, 256), dtype=torch.int8)
    x = torch.randn(tokens, 256)
    with torch.inference_mode():
        try:
            call = PEERS[name].make(codes, 0.02, x, 1)
        except (ImportError, OSError) as error:
            pytest.skip(f"{name}: {error}")
        got = torch.as_tensor(call())
        again = torch.as_tensor(call())
    expected = x @ codes.float().t() * 0.02
    assert got.shape == expected.shape
    assert (got - expected).norm() / expected.norm() < layers.TOLERANCE
    assert torch.equal(got, again)


def test_a_table_and_files(bench: Program, tmp_path: Path) -> None:
    ended = bench(*SMALL, "--tokens", "1", "2", "--only", "int8", "cpu", "--output", tmp_path / "new")
    assert ended.code == 0, ended.err
    assert "64 x 256, weights hot" in ended.out
    with (tmp_path / "new" / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = {row["name"] for row in rows}
    assert "torch fp32" in names
    for row in rows:
        assert (row["outputs"], row["inputs"], row["cache"]) == ("64", "256", "hot")
        assert row["tokens"] in ("1", "2")
        assert float(row["seconds"]) > 0
        rate = 64 * 256 * int(row["tokens"]) / float(row["seconds"]) / 1e9
        assert float(row["gmac_per_second"]) == pytest.approx(rate)
    if not missing():
        assert {"cpu", layers.READ, layers.DOTS} < names
        floor = max(float(r["seconds"]) for r in rows if r["name"].startswith("floor") and r["tokens"] == "2")
        (ours,) = (r for r in rows if r["name"] == "cpu" and r["tokens"] == "2")
        assert float(ours["times_floor"]) == pytest.approx(float(ours["seconds"]) / floor)
    assert (tmp_path / "new" / "layers.md").read_text().startswith("| cache | outputs |")
    assert (tmp_path / "new" / "roofline.png").stat().st_size > 10_000
    assert "</svg>" in (tmp_path / "new" / "roofline.svg").read_text()


def test_wrong_numbers_are_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = layers.Peer(lambda codes, scale, x, threads: lambda: torch.zeros(len(x), len(codes)), 2)
    with pytest.raises(RuntimeError, match="one computes different numbers at 8x256, 2 token"):
        layers.prepare({"one": wrong}, "hot", 8, 256, 2, 1)


def test_what_is_not_installed_is_said_once(bench: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any) -> None:
        raise ImportError("no module named 'int8'")

    monkeypatch.setitem(PEERS, "int8", layers.Peer(absent, 8, "the package"))
    ended = bench(*SMALL, "--only", "int8", "--tokens", "1", "2")
    assert ended.code == 0
    assert ended.out.count("int8 is skipped: no module named 'int8' (package: the package)") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["layer"], "unknown benchmark 'layer'. Did you mean 'layers'?"),
        ([*SMALL, "--only", "cpuu"], "unknown implementation 'cpuu'. Did you mean 'cpu'?"),
        ([*SMALL, "--cache", "colt"], "invalid choice: 'colt' (choose from"),
        ([*SMALL, "--shapes", "64"], "'64' is not a shape: write OUTPUTSxINPUTS"),
        ([*SMALL, "--tokens", "0"], "'0' must be a whole number of at least 1"),
        (["models", "--models", "vitt"], "unknown model 'vitt'. Did you mean 'vit'?"),
        (["models", "--kernels", "cpuu"], "unknown kernel 'cpuu'. Did you mean 'cpu'?"),
        (["models", "--quantizers", "full"], "there is nothing to freeze"),
        (["models", "--quantizers", "ternary"], "unknown quantizer 'ternary'"),
        (["step", "--quantizers", "binry"], "unknown quantizer 'binry'. Did you mean 'binary'?"),
    ],
)
def test_a_typo_is_told_in_words(bench: Program, words: list[str], said: str) -> None:
    ended = bench(*words)
    assert ended.code == 2
    assert said in ended.err
    assert "Traceback" not in ended.err


def test_a_folder_that_cannot_be_written(bench: Program, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = bench(*SMALL, "--only", "int8", "--tokens", "1", "--output", tmp_path / "file" / "x")
    assert ended.code == 2
    assert "cannot write to" in ended.err


def test_help_lists_the_benchmarks(bench: Program) -> None:
    ended = bench("--help")
    assert ended.code == 0
    for name in ("step", "layers", "models"):
        assert f" {name}" in ended.out


def test_ggml_is_there_where_its_package_is() -> None:
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("xllamacpp is not installed")
    with pytest.raises(ValueError, match="multiples of 256"):
        PEERS["ggml TQ2_0"].make(torch.ones(4, 100, dtype=torch.int8), 1.0, torch.ones(1, 100), 1)
