"""The benchmark of a training step: what takes turns, and what it holds between forward and backward."""

from __future__ import annotations

import argparse
from functools import cache

import pytest
import torch

from bitexp.bench.candidates import BF16, PEER, Candidate, candidates, layer_bytes, measure
from bitexp.bench.steps import PRECISIONS
from bitexp.bench.workloads import WORKLOADS
from bitexp.quant.layers import quantized_layers


def options(model: str, **changes: object) -> argparse.Namespace:
    """As the command line gives them."""
    known: dict[str, object] = {"shape": [1, 8, 8], "classes": 10, "context": 16, "vocabulary": 64}
    known |= {"batch": 32, "quantizers": [*PRECISIONS]}
    return argparse.Namespace(model=model, kernel="auto", **{**known, **changes})


@cache
def made(model: str) -> dict[str, Candidate]:
    """The candidates of a model by name."""
    return {c.name: c for c in candidates(options(model))}


@pytest.mark.parametrize("model", [*WORKLOADS, "vit", "decoder"])
def test_every_precision_takes_part_in_fp32_and_in_bf16(model: str) -> None:
    found = made(model)
    for name in ("full", "full_norm", "binary", "ternary_mean", "ternary_median"):
        assert name in found
        assert found[name + BF16].dtype == torch.bfloat16
    assert PEER in found
    layers = quantized_layers(found["ternary_mean"].model)
    assert len(layers) >= 2
    assert not quantized_layers(found["full"].model)
    before = [p.detach().clone() for p in found["ternary_mean" + BF16].model.parameters()]
    found["ternary_mean" + BF16].step()
    after = list(found["ternary_mean" + BF16].model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_the_layers_hold_at_most_35_percent_of_linear_and_layer_norm() -> None:
    found = made("reference_mlp")
    control = layer_bytes(found["full_norm"])
    for name in ("ternary_mean", "ternary_median", "binary", "ternary_mean" + BF16):
        assert layer_bytes(found[name]) <= 0.35 * control


def test_a_model_with_arguments_that_the_command_has_as_well_takes_part() -> None:
    found = candidates(options("cnn", batch=2, quantizers=["binary"]))
    assert len(quantized_layers(next(c for c in found if c.name == "binary").model)) >= 2


def test_other_quantizers_take_part_beside_the_two_that_they_are_measured_by() -> None:
    found = [c.name for c in candidates(options("reference_mlp", quantizers=["ternary_int4", "full"]))]
    assert [name for name in found if not name.startswith(PEER)] == [
        name + dtype for dtype in ("", BF16) for name in ("full", "full_norm", "ternary_int4")
    ]


def test_costs_are_ratios_to_full() -> None:
    found = made("reference_mlp")
    costs = measure([found["full"], found["ternary_mean"]], 2)
    assert costs["full"].ratio == 1
    assert costs["full"].in_layers == 0
    assert costs["ternary_mean"].ratio > 0
    assert costs["ternary_mean"].in_layers > 0
