"""Optimizers that know the levels of weights, Muon beside AdamW, and compensated bf16."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from bitexp.config.optimization import Cage, Dqt, Muon, Optimizer
from bitexp.quant import quantize, quantized_layers
from bitexp.train.bf16_latents import Bf16Latents, forget
from bitexp.train.optimizers import build_optimizer
from bitexp.train.several import Several
from tests.support.quantizers import MakeQuantizer as Make
from tests.support.quantizers import make_quantizer as quantizer_of
from tests.train.test_optimizers import adam

ADAM: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "betas": [0.9, 0.95], "eps": 1e-8}
SETTINGS: dict[str, tuple[str, Optimizer]] = {
    "cage": ("ternary_mean", Cage(name="cage", pull=10.0, silent=0.5, **ADAM)),
    "dqt": ("dqt", Dqt(name="dqt", **ADAM)),
    "muon": (
        "ternary_mean",
        Muon(name="muon", momentum=0.95, nesterov=True, stochastic_rounding=False, kahan=False, **ADAM),
    ),
}


def network(preset: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A small quantized network, the same each time."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)).to(dtype)
    quantize(model, quantizer_of(preset), exclude=["2"])
    return model


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    """A step on the batch of that number; random draws are those of the number too."""
    torch.manual_seed(number)
    for group in optimizer.param_groups:
        if "share" in group:
            group["share"] = number / 6
    optimizer.zero_grad()
    model(torch.randn(8, 16, dtype=model[2].weight.dtype)).float().square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*SETTINGS, "kahan"])
def test_a_restored_optimizer_goes_on_as_if_it_had_never_stopped(name: str, dtype: torch.dtype) -> None:
    preset, settings = SETTINGS.get(name, ("ternary_mean", adam().model_copy(update={"kahan": True})))
    if dtype == torch.bfloat16 and isinstance(settings, Cage | Dqt):
        return  # which a run refuses
    model = network(preset, dtype)
    optimizer = build_optimizer(model, settings)
    for number in range(4):
        step(model, optimizer, number)
    stored = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, stored)
    for number in range(4, 7):
        step(model, optimizer, number)
    stored.seek(0)
    states = torch.load(stored, weights_only=True)
    resumed = network(preset, dtype)
    resumed.load_state_dict(states["model"])
    other = build_optimizer(resumed, settings)
    other.load_state_dict(states["optimizer"])
    for number in range(4, 7):
        step(resumed, other, number)
    for ours, theirs in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("preset", ["ternary_mean", "quest"])
def test_cage_pulls_latents_to_their_levels_when_its_time_has_come(make_quantizer: Make, preset: str) -> None:
    settings = Cage(name="cage", pull=10.0, silent=0.5, **{**ADAM, "weight_decay": 0.0})
    model, plain = network(preset), network(preset)
    optimizer, adamw = build_optimizer(model, settings), build_optimizer(plain, adam(decay=0.0))
    for number in range(3):  # up to half of the training
        step(model, optimizer, number)
        step(plain, adamw, number)
    assert torch.equal(model[0].weight, plain[0].weight)
    layer = model[0]
    w = layer.weight.detach().clone()
    if preset == "quest":
        transform = layer.parts.transform
        gap = w - transform(layer.quantized().dequantized(), -1)  # which is its own inverse
    else:
        gap = w - layer.quantized().dequantized()
    step(model, optimizer, 6)  # the end
    step(plain, adamw, 6)
    assert_close(layer.weight.detach(), plain[0].weight.detach() - 0.01 * 10 * gap, rtol=1e-4, atol=1e-5)
    assert torch.equal(model[2].weight, plain[2].weight)  # in full precision


def test_dqt_keeps_weights_at_their_levels_and_moves_by_one_at_most_and_right_on_average() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(400, 100))
    quantize(model, quantizer_of("dqt"))
    layer = model[0]
    optimizer = build_optimizer(model, Dqt(name="dqt", **{**ADAM, "weight_decay": 0.0}))
    before = layer.quantized()
    assert torch.equal(before.dequantized(), layer.weight)
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()
    after = layer.quantized()
    assert torch.equal(after.scale, before.scale)
    assert torch.equal(after.dequantized(), layer.weight)
    moves = (after.codes - before.codes).float()
    assert set(moves.unique().tolist()) == {-1.0, 0.0}
    assert not moves[before.codes == -1].any()  # these are at the end already
    expected = -0.01 / float(before.scale)
    assert float(moves[before.codes > -1].mean()) == pytest.approx(expected, rel=0.05)


def test_dqt_needs_scales_that_stay() -> None:
    with pytest.raises(ValueError, match=r"quantizer.weights=fixed"):
        build_optimizer(network("ternary_mean"), SETTINGS["dqt"][1])


def test_muon_has_the_matrices_of_the_body_and_adamw_all_else() -> None:
    model = network("lsq")
    optimizer = build_optimizer(model, SETTINGS["muon"][1])
    assert isinstance(optimizer, Several)
    first, second = optimizer.inner
    assert [id(p) for g in first.param_groups for p in g["params"]] == [id(model[0].weight)]
    assert isinstance(first, torch.optim.Muon)
    assert isinstance(second, torch.optim.AdamW)
    rest = {id(p) for p in model.parameters()} - {id(model[0].weight)}
    assert {id(p) for g in second.param_groups for p in g["params"]} == rest
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.1, 0.0]
    alone = nn.Parameter(model[0].weight.detach().clone())
    theirs = torch.optim.Muon([alone], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    step(model, optimizer, 0)
    alone.grad = model[0].weight.grad
    theirs.step()
    assert torch.equal(alone, model[0].weight)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in model.parameters()]
    step(model, optimizer, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    forget(optimizer)
    assert not any(inner.state for inner in optimizer.inner)


def test_muon_does_without_what_is_not_there() -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    optimizer = build_optimizer(model, SETTINGS["muon"][1])
    assert isinstance(optimizer, Several)
    assert [type(inner) for inner in optimizer.inner] == [torch.optim.AdamW]
    assert not quantized_layers(model)


def test_kahan_keeps_small_steps_that_bf16_would_lose() -> None:
    def moved(kahan: bool) -> float:
        layer = nn.Linear(1, 1, bias=False).bfloat16()
        layer.weight.data.fill_(1.0)
        settings = adam(lr=1e-4, decay=0.0).model_copy(update={"kahan": kahan})
        optimizer = build_optimizer(layer, settings)
        assert isinstance(optimizer, Bf16Latents)
        for _ in range(200):
            layer.weight.grad = torch.ones_like(layer.weight)
            optimizer.step()
        return 1 - layer.weight.item()

    assert moved(False) == 0
    assert moved(True) == pytest.approx(0.02, abs=0.004)  # 200 steps of 1e-4, to the next bf16
