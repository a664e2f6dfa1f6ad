"""The terms of a training loss, and that it is their weighted sum."""

from __future__ import annotations

import csv
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitexp.common.errors import UserError
from bitexp.config.optimization import Adam
from bitexp.tasks import Task
from bitexp.tasks.objectives import OBJECTIVES, BinaryCrossEntropy, build_objectives, cross_entropy

ADAM = Adam(name="adamw", lr=0.01, weight_decay=0.0, betas=[0.9, 0.95], eps=1e-8, stochastic_rounding=False)


def task(**objectives: dict[str, Any]) -> Task:
    """A task whose model gives out what it gets, as fp32 logits."""
    return Task(nn.Identity(), ADAM, **({"objectives": objectives} if objectives else {}))


def batch(*shape: int) -> tuple[Tensor, Tensor]:
    """Logits of that shape that ask for their gradient, and targets."""
    torch.manual_seed(0)
    return torch.randn(shape, requires_grad=True), torch.randint(shape[-1], shape[:-1])


@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 5)])
def test_the_loss_is_the_cross_entropy_where_nothing_else_is_said(shape: tuple[int, ...]) -> None:
    logits, targets = batch(*shape)
    of = task()
    loss = of.training_step((logits, targets), 0)
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = F.cross_entropy(logits.reshape(-1, 5), targets.reshape(-1))
    assert torch.equal(loss, expected)
    assert torch.equal(gradient, torch.autograd.grad(expected, logits)[0])
    assert of.terms == {}


def test_mixed_targets_and_smoothing() -> None:
    logits, targets = batch(6, 5)
    shares = torch.rand(6, 5).softmax(-1)
    assert torch.equal(cross_entropy(logits, shares), F.cross_entropy(logits, shares))
    of = task()
    of.label_smoothing = 0.1
    assert torch.equal(
        of.training_step((logits, targets), 0), F.cross_entropy(logits, targets, label_smoothing=0.1)
    )


def test_the_z_loss_and_its_gradient() -> None:
    """d log^2 Z / d logit = 2 log Z softmax, over the number of predictions."""
    logits, targets = batch(3, 4, 5)
    loss = OBJECTIVES.get("z_loss")()(logits, (logits, targets), task())
    exact = logits.detach().double()
    log_z = exact.exp().sum(-1).log()
    assert loss.item() == pytest.approx((log_z**2).mean().item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(
        gradient.double(), 2 * log_z[..., None] * exact.softmax(-1) / 12, rtol=1e-5, atol=1e-8
    )


def test_terms_are_summed_by_weight_and_kept() -> None:
    logits, targets = batch(7, 5)
    of = task(cross_entropy={"weight": 0.5}, z_loss={"weight": 0.25})
    loss = of.training_step((logits, targets), 0)
    surprise, z = F.cross_entropy(logits, targets), logits.logsumexp(-1).square().mean()
    assert loss.item() == pytest.approx((0.5 * surprise + 0.25 * z).item(), rel=1e-6)
    assert {name: float(term) for name, term in of.terms.items()} == pytest.approx(
        {"cross_entropy": surprise.item(), "z_loss": z.item()}
    )
    assert not any(term.requires_grad for term in of.terms.values())
    assert task(z_loss={}).objectives["z_loss"].weight == 1e-4


def test_a_run_with_another_term_logs_each_and_is_another_run(train: Any) -> None:
    plain, with_z = (
        train("trainer.log_every=2"),
        train("trainer.log_every=2", "+task.objectives.z_loss.weight=0.01"),
    )
    assert plain.folder != with_z.folder
    measured = []
    for outcome in (plain, with_z):
        assert outcome.status == "finished"
        with (outcome.folder / "metrics.csv").open() as file:
            measured.append([row for row in csv.DictReader(file) if row["metric"].startswith("train/")])
    batch = {"train/accuracy", "train/grad_norm", "train/lr"}
    assert {row["metric"] for row in measured[0]} == {"train/loss", *batch}
    at = {(row["metric"], row["step"]): float(row["value"]) for row in measured[1]}
    for step in ("2", "8"):
        total = at["train/cross_entropy", step] + 0.01 * at["train/z_loss", step]
        assert at["train/loss", step] == pytest.approx(total, rel=1e-6)
    assert plain.result["metrics"]["val/loss"] != with_z.result["metrics"]["val/loss"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("+task.objectives.zloss={}", "unknown objective 'zloss'. Did you mean 'z_loss'"),
        ("+task.objectives.z_loss.wait=1", "unknown key 'task.objectives.z_loss.wait'"),
        (
            "+task.objectives.z_loss.weight=-1.0",
            "task.objectives.z_loss.weight=-1.0 should be greater than 0",
        ),
        ("~task.objectives.cross_entropy", "task.objectives is empty, so there is nothing to minimize"),
    ],
)
def test_a_mistake_is_explained(words: str, said: str, train: Any) -> None:
    with pytest.raises(UserError, match=said):
        train(words)


def test_binary_cross_entropy_is_that_of_timm() -> None:
    """Version 1.0.31: smoothing 0.1 of labels; smoothing 0, target_threshold 0.2 of shares."""
    outputs, of = torch.linspace(-2, 2, 6).reshape(2, 3), task()
    of.label_smoothing = 0.1
    labels = BinaryCrossEntropy()(outputs, (outputs, torch.tensor([2, 0])), of)
    assert float(labels) == pytest.approx(0.9010751843452454)
    of.label_smoothing = 0.0
    shares = torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.0, 0.9]])
    mixed = BinaryCrossEntropy(threshold=0.2)(outputs, (outputs, shares), of)
    assert float(mixed) == pytest.approx(1.101075291633606)


def test_null_switches_a_term_off() -> None:
    terms = build_objectives({"cross_entropy": None, "z_loss": {"weight": 0.5}})
    assert list(terms) == ["z_loss"]
    with pytest.raises(UserError, match="nothing to minimize"):
        build_objectives({"cross_entropy": None})
