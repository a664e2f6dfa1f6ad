"""Weights by tables of values: against brute force, errors of normal weights, and the command."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitexp.__main__ import main
from bitexp.bench.tables import CHOICES, NAMED, SHARES, bits, rounded
from bitexp.quant.weights.codebook import Codebook
from bitexp.quant.weights.int import Int
from tests.support.processes import InProcess
from tests.support.training import Train


def gaussian(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def error(weight: Tensor, name: str, size: int = 128) -> float:
    found = rounded(weight, CHOICES[name], size, [1.0]).weight
    return float((found - weight).square().sum() / weight.square().sum())


@pytest.mark.parametrize("name", ["int3 or fp3", "fp3 with 3, -3, 6 or -6", "int4, fp4 or nf4"])
@pytest.mark.parametrize("shares", [[1.0], SHARES], ids=["largest", "best"])
def test_a_group_gets_the_best_table_scale_and_values_by_brute_force(name: str, shares: list[float]) -> None:
    weight, size = gaussian(3, 7), 4  # groups of four and of three
    found, counts = rounded(weight, CHOICES[name], size, shares), [0] * len(CHOICES[name])
    for line, group in itertools.product(range(3), (slice(0, 4), slice(4, 7))):
        numbers, best = weight[line, group].double().tolist(), []
        for (place, values), share in itertools.product(enumerate(CHOICES[name]), shares):
            unit = share * max(map(abs, numbers)) / max(map(abs, values))
            best.append((sum(min((v * unit - x) ** 2 for v in values) for x in numbers), place))
        ours = float((found.weight[line, group].double() - weight[line, group].double()).square().sum())
        assert ours == pytest.approx(min(best)[0], rel=1e-4, abs=1e-12)
        counts[min(best)[1]] += 1
    assert found.chosen.tolist() == counts


@pytest.mark.parametrize("name", ["fp3", "fp4", "int3", "int4"])
def test_one_table_is_the_quantizer_of_that_name(name: str) -> None:
    weight = gaussian(16, 64)
    part = (
        Int(weight, bits=int(name[3]), granularity="group", group_size=32)
        if name.startswith("int")
        else Codebook(weight, values=name, granularity="group", group_size=32)  # type: ignore[arg-type]
    )
    theirs = part.quantize(weight).dequantized()
    ours = rounded(weight, CHOICES[name], 32, [1.0]).weight
    apart = (ours - theirs).abs() > 1e-5  # but for numbers within a rounding of the middle
    assert float(apart.float().mean()) < 0.005


def test_errors_on_normal_weights() -> None:
    """Those of three bits in groups of 128 are published beside BitMoD (arXiv 2411.11745)."""
    weight = gaussian(512, 512)
    assert error(weight, "int3") == pytest.approx(0.0754, rel=0.01)
    assert error(weight, "fp3") == pytest.approx(0.0571, rel=0.01)
    assert error(weight, "fp3 with 3, -3, 6 or -6") == pytest.approx(0.0380, rel=0.01)
    assert error(weight, "int4, fp4 or nf4") < min(error(weight, n) for n in ("int4", "fp4", "nf4"))
    chosen = rounded(weight, CHOICES["fp3 with 3, -3, 6 or -6"], 128, [1.0]).chosen
    assert (chosen / chosen.sum()).tolist() == pytest.approx([0.08, 0.08, 0.42, 0.42], abs=0.02)


def test_bits_are_of_codes_scales_and_the_choice() -> None:
    assert bits(CHOICES["fp3"], 128) == 3 + 16 / 128
    assert bits(CHOICES["int4, fp4 or nf4"], 64) == 4 + (16 + 2) / 64
    assert all(0 in table for tables in CHOICES.values() for table in tables)
    assert len(NAMED["nf4"]) == 16


def test_a_trained_network_is_measured(in_process: InProcess, train: Train, tmp_path: Path) -> None:
    call, folder = in_process(main, "bitexp"), train("quantizer=full").folder
    ended = call("bench", "tables", folder, "--group", 16, "--samples", 50, "--output", tmp_path)
    assert ended.code == 0, ended.err
    with (tmp_path / "tables.csv").open() as file:
        rows = {row["values"]: row for row in csv.DictReader(file)}
    assert [*rows] == ["full precision", *CHOICES]
    errors = {name: float(row["error"]) for name, row in rows.items()}
    assert errors["full precision"] == 0 < errors["fp4 with 5, -5, 8 or -8"] < errors["fp4"] < errors["fp3"]
    assert all(float(row["error_best_scale"]) <= float(row["error"]) for row in rows.values())
