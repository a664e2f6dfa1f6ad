"""The benchmark on a GPU: what it says without one, its table, and a small run with one."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from bitexp.quant.activations.absmax import absmax_codes

from bitexp.bench import gpu
from bitexp.bench.gpu_layers import BASE, CANDIDATES, Make, bf16, int_mm
from bitexp.common.console import Report
from bitexp.common.errors import UserError
from tests.support.processes import InProcess, Program


@pytest.fixture
def bench(in_process: InProcess) -> Program:
    return in_process(gpu.main, "python -m bitexp.bench.gpu")


def test_without_a_gpu_it_says_so(bench: Program) -> None:
    ended = bench()
    assert ended.code == 2
    assert ended.err == "bitexp: this benchmark needs a GPU: torch sees no GPU\n"
    assert not ended.out


@pytest.mark.parametrize("layer", ["25", "25x", "x7", "0x7", "axb", "2x3x4"])
def test_a_layer_that_is_none_is_refused(bench: Program, layer: str) -> None:
    ended = bench("--layers", layer)
    assert ended.code == 2
    assert f"--layers {layer}: a layer is written OUTPUTSxINPUTS, as in 2560x6912" in ended.err


def test_the_table_compares_with_the_base_and_the_floor(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        gpu.Row("8x4", 1, BASE, 10.0, 0.01, 2.0),
        gpu.Row("8x4", 1, "triton", 2.5, 0.0, 2.0),
        gpu.Row("8x4", 1, "gemlite", None, None, 2.0, "RuntimeError: no"),
    ]
    Report().table(gpu.table(rows))
    lines = capsys.readouterr().out
    assert [line.split()[-4:] for line in lines.splitlines() if "triton" in line] == [
        ["2.50", "1.25", "4.00", "0.0e+00"]
    ]
    assert "failed" in lines
    assert "RuntimeError: no" in lines


@pytest.mark.parametrize("make", [bf16, int_mm])
def test_layers_of_torch_are_the_layer(make: Make) -> None:
    torch.manual_seed(0)
    codes, scale = torch.randint(-1, 2, (24, 40), dtype=torch.int8), torch.tensor(0.02)
    x = torch.randn(20, 40).bfloat16()
    layer = make(codes, scale)
    y = layer(x)
    y = getattr(layer, "finish", lambda y: y)(y)
    x_codes, x_scale = absmax_codes(x.float(), 127, (-1,))
    exact = (x_codes.double() @ codes.double().t()) * (x_scale.double() * scale.double())
    assert float((y.double() - exact).norm() / exact.norm()) < 0.02


@pytest.mark.gpu
def test_a_small_run(bench: Program, tmp_path: Path) -> None:
    ended = bench("--layers", "128x192", "--tokens", 1, 32, "--rounds", 2, "--save", tmp_path / "out.csv")
    assert ended.code == 0
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    ours = [row for row in rows if row["name"].startswith(("triton", "torch bf16"))]
    assert len(ours) == 2 * sum(name.startswith(("triton", "torch bf16")) for name in CANDIDATES)
    assert not [row for row in ours if row["failed"]]
    exact = [row for row in ours if row["name"] in ("triton", "triton, int8 weights")]
    assert all(float(row["error"]) < 0.004 for row in exact)  # bf16 outputs


def test_it_is_refused_in_words_by_its_own_check() -> None:
    with pytest.raises(UserError, match="torch sees no GPU"):
        gpu.check_gpu()
