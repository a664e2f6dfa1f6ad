"""Optimizers: which parameters decay, and what becomes of small steps in bf16."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bitexp.config.optimization import Adam, Sgd
from bitexp.quant import Quantizer
from bitexp.quant.convert import quantize
from bitexp.train.bf16_latents import Bf16Latents, forget, stochastic_bf16
from bitexp.train.optimizers import build_optimizer, decay_groups

Make = Callable[..., Quantizer]

DECAYING = {
    "patches.weight",
    "conv1d.weight",
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "body.0.weight",
    "body.2.weight",
    "head.weight",
}


class Network(nn.Module):
    """One of each kind of parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 2)
        self.conv1d = nn.Conv1d(8, 8, 3)
        self.words = nn.Embedding(7, 8)
        self.pos_embed = nn.Parameter(torch.zeros(5, 8))
        self.cls_token = nn.Parameter(torch.zeros(8))
        self.layer_scale = nn.Parameter(torch.ones(8, 1, 1))
        self.attention = nn.MultiheadAttention(8, 2)
        self.norm = nn.LayerNorm(8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8, bias=False))
        self.head = nn.Linear(8, 3)


def adam(name: str = "adamw", lr: float = 0.01, decay: float = 0.1, stochastic: bool = False) -> Adam:
    """Settings of Adam."""
    return Adam(
        name=name,  # type: ignore[arg-type]
        lr=lr,
        weight_decay=decay,
        betas=[0.9, 0.95],
        eps=1e-8,
        stochastic_rounding=stochastic,
    )


def sgd(stochastic: bool = False) -> Sgd:
    """Settings of SGD."""
    return Sgd(
        name="sgd",
        lr=0.1,
        weight_decay=0.01,
        momentum=0.9,
        nesterov=True,
        stochastic_rounding=stochastic,
    )


def names(model: nn.Module, decays: bool) -> set[str]:
    """The parameters in the group that decays, or in the other one."""
    known = {id(p): name for name, p in model.named_parameters()}
    groups = [g for g in decay_groups(model, 0.1) if g["decays"] == decays]
    assert all(g["weight_decay"] == (0.1 if decays else 0.0) for g in groups)
    return {known[id(p)] for g in groups for p in g["params"]}


@pytest.mark.parametrize("quantizer", ["full", "full_norm", "ternary_mean", "binary"])
def test_weights_of_layers_decay_at_every_precision_and_nothing_else_does(
    make_quantizer: Make, quantizer: str
) -> None:
    """Norms, biases, embeddings, positions and scales do not; the same ones at each precision."""
    model = Network()
    quantize(
        model,
        make_quantizer(quantizer),
        ["patches", "body"],
        ["conv1d", "words", "pos_embed", "layer_scale", "attention", "head"],
    )
    assert names(model, decays=True) == DECAYING
    everything = {name for name, _ in model.named_parameters()}
    assert names(model, decays=False) == everything - DECAYING
    assert {"words.weight", "pos_embed", "layer_scale", "norm.weight"} <= everything - DECAYING


def test_a_head_that_shares_its_weights_with_an_embedding_does_not_decay(make_quantizer: Make) -> None:
    model = nn.ModuleDict({"words": nn.Embedding(5, 8), "head": nn.Linear(8, 5), "body": nn.Linear(8, 8)})
    model["head"].weight = model["words"].weight
    quantize(model, make_quantizer("ternary_mean"), ["head", "body"], ["words"])
    assert names(model, decays=True) == {"body.weight"}


def test_parameters_that_are_not_trained_are_left_out() -> None:
    model = Network()
    model.requires_grad_(False)
    model.head.weight.requires_grad_(True)
    (group,) = decay_groups(model, 0.1)
    assert [id(p) for p in group["params"]] == [id(model.head.weight)]


@pytest.mark.parametrize(
    ("settings", "kind"),
    [(adam(), torch.optim.AdamW), (adam("adam"), torch.optim.Adam), (sgd(), torch.optim.SGD)],
)
def test_each_parameter_is_in_one_group_with_the_settings(
    settings: Adam | Sgd, kind: type[torch.optim.Optimizer]
) -> None:
    model = Network()
    optimizer = build_optimizer(model, settings)
    assert type(optimizer) is kind
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    for group in optimizer.param_groups:
        assert group["lr"] == settings.lr
        assert group["weight_decay"] == (settings.weight_decay if group["decays"] else 0.0)
        if isinstance(settings, Adam):
            assert group["betas"] == tuple(settings.betas)
            assert group["eps"] == settings.eps
        else:
            assert group["momentum"] == settings.momentum
            assert group["nesterov"] is True


@pytest.mark.parametrize(("lr", "lost"), [(1e-5, 0.84), (3e-5, 0.70), (1e-4, 0.12), (3e-4, 0.0), (1e-3, 0.0)])
def test_nearest_rounding_loses_the_published_share_of_small_steps(lr: float, lost: float) -> None:
    """Weights of std 0.02 that a unit step of Adam leaves unchanged."""
    before, after, _ = one_step(lr, stochastic=False)
    assert float((after == before).float().mean()) == pytest.approx(lost, abs=0.05)


@pytest.mark.parametrize("lr", [1e-5, 1e-4, 1e-3])
def test_stochastic_rounding_keeps_small_steps_in_expectation(lr: float) -> None:
    before, after, signs = one_step(lr, stochastic=True)
    moved = ((before - after) * signs).double()
    error = float(moved.std()) / math.sqrt(moved.numel())
    assert error < 0.02 * lr
    assert abs(float(moved.mean()) - lr) < 5 * error


def one_step(lr: float, stochastic: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Weights before and after one step of Adam in bf16, and the signs of their gradients."""
    torch.manual_seed(0)
    layer = nn.Linear(500, 400, bias=False).bfloat16()
    nn.init.normal_(layer.weight, std=0.02)
    before = layer.weight.detach().float()
    signs = torch.randn(400, 500).sign()
    layer.weight.grad = signs.bfloat16()
    build_optimizer(layer, adam(lr=lr, decay=0.0, stochastic=stochastic)).step()
    assert layer.weight.dtype == torch.bfloat16
    return before, layer.weight.detach().float(), signs


FINITE = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


@given(values=st.lists(FINITE, min_size=1, max_size=20), seed=st.integers(0, 2**32 - 1))
def test_stochastic_rounding_gives_one_of_the_two_neighbours(values: list[float], seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.tensor(values)
    rounded = stochastic_bf16(x)
    assert rounded.dtype == torch.bfloat16
    toward_zero = x.view(torch.int32).bitwise_and(-(1 << 16)).view(torch.float32)
    away = (toward_zero.view(torch.int32) + (1 << 16)).view(torch.float32)
    exact = toward_zero == x
    assert torch.equal(rounded.float()[exact], x[exact])
    assert bool(((rounded.float() == toward_zero) | (rounded.float() == away)).all())


@pytest.mark.parametrize("value", [0.3, -0.3, 1.001, -1.999, 3e-5, 1e10])
def test_stochastic_rounding_is_right_on_average(value: float) -> None:
    torch.manual_seed(0)
    x = torch.full((100_000,), value)
    rounded = stochastic_bf16(x).double()
    assert len(rounded.unique()) == 2
    error = float(rounded.std()) / math.sqrt(len(x))
    assert abs(float(rounded.mean()) - float(x[0])) < 5 * error


def test_stochastic_rounding_keeps_what_is_not_finite() -> None:
    x = torch.tensor([torch.inf, -torch.inf, torch.nan])
    rounded = stochastic_bf16(x).float()
    assert torch.equal(rounded[:2], x[:2])
    assert rounded[2].isnan()


SETTINGS: dict[str, Adam | Sgd] = {
    "adamw": adam(),
    "adam": adam("adam"),
    "sgd": sgd(),
    "adamw stochastic": adam(stochastic=True),
    "sgd stochastic": sgd(stochastic=True),
}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    """One training step on the batch of that number; random draws are those of the number too."""
    torch.manual_seed(number)
    x = torch.randn(8, 6, dtype=next(model.parameters()).dtype)
    optimizer.zero_grad()
    model(x).float().square().mean().backward()
    optimizer.step()


def network(dtype: torch.dtype) -> nn.Module:
    """A small network, the same each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 4)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_restored_optimizer_goes_on_as_if_it_had_never_stopped(name: str, dtype: torch.dtype) -> None:
    model = network(dtype)
    optimizer = build_optimizer(model, SETTINGS[name])
    assert isinstance(optimizer, Bf16Latents) == (dtype == torch.bfloat16)
    for number in range(3):
        step(model, optimizer, number)
    optimizer.param_groups[0]["lr"] = 0.05
    stored = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, stored)
    for number in range(3, 6):
        step(model, optimizer, number)

    stored.seek(0)
    states = torch.load(stored, weights_only=True)
    resumed = network(dtype)
    resumed.load_state_dict(states["model"])
    other = build_optimizer(resumed, SETTINGS[name])
    other.load_state_dict(states["optimizer"])
    assert [g["lr"] for g in other.param_groups] == [0.05, SETTINGS[name].lr]
    for number in range(3, 6):
        step(resumed, other, number)
    for ours, theirs in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("settings", [adam(), sgd()], ids=["adamw", "sgd"])
def test_bf16_latents_take_the_step_of_fp32_and_are_rounded_to_the_nearest(
    settings: Adam | Sgd,
) -> None:
    model, wide = network(torch.bfloat16), network(torch.bfloat16).float()
    optimizer, expected = build_optimizer(model, settings), build_optimizer(wide, settings)
    for number in range(4):
        step(model, optimizer, number)
        for latent, twin in zip(model.parameters(), wide.parameters(), strict=True):
            assert latent.grad is not None
            twin.grad = latent.grad.float()
        expected.step()
        for latent, twin in zip(model.parameters(), wide.parameters(), strict=True):
            assert torch.equal(latent, twin.bfloat16())
            twin.data.copy_(latent)
    for state in optimizer.state_dict()["state"].values():
        assert all(v.dtype == torch.float32 for v in state.values() if isinstance(v, Tensor))


@pytest.mark.parametrize("stochastic", [True, False])
def test_parameters_in_fp32_beside_bf16_ones_are_not_rounded(stochastic: bool) -> None:
    model, alone = network(torch.bfloat16), network(torch.float32)
    model[2].float()
    optimizer = build_optimizer(model, adam(stochastic=stochastic))
    expected = build_optimizer(alone, adam())
    assert isinstance(optimizer, Bf16Latents)
    with torch.no_grad():
        model[2].weight.copy_(alone[2].weight)
    for _ in range(2):
        gradient = torch.randn(4, 9)
        model[2].weight.grad, alone[2].weight.grad = gradient, gradient.clone()
        optimizer.step()
        expected.step()
    assert torch.equal(model[2].weight, alone[2].weight)


def test_a_parameter_without_a_gradient_stays() -> None:
    model = network(torch.bfloat16)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = build_optimizer(model, adam(stochastic=True))
    model[0].weight.grad = torch.ones_like(model[0].weight)
    optimizer.step()
    moved = [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
    assert moved == [True, False, False, False]


def test_the_rate_of_the_outer_groups_is_the_one_that_counts() -> None:
    model = network(torch.bfloat16)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = build_optimizer(model, adam())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    step(model, optimizer, 0)
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_a_closure_is_called_with_gradients_on() -> None:
    model = network(torch.bfloat16)
    optimizer = build_optimizer(model, adam())

    def closure() -> Any:
        optimizer.zero_grad()
        loss = model(torch.ones(2, 6).bfloat16()).float().square().mean()
        loss.backward()
        return loss.detach()

    first, second = optimizer.step(closure), optimizer.step(closure)
    assert first is not None
    assert second is not None
    assert second < first


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_optimizer_that_forgets_goes_on_as_if_it_were_new(dtype: torch.dtype) -> None:
    model, fresh = network(dtype), network(dtype)
    optimizer = build_optimizer(model, adam())
    step(model, optimizer, 0)
    fresh.load_state_dict(model.state_dict())
    forget(optimizer)
    new = build_optimizer(fresh, adam())
    for number in (1, 2):
        step(model, optimizer, number)
        step(fresh, new, number)
    for parameter, expected in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(parameter, expected)
