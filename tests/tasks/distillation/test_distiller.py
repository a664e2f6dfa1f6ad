"""A teacher beside a task: seen by nobody, asked once, and never trained."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from bitexp.config.optimization import Adam
from bitexp.models import build_model
from bitexp.tasks import Task
from bitexp.tasks.distillation import Distiller
from bitexp.tasks.distillation.losses import AttentionLoss, DistillationLoss, HiddenLoss, LogitsLoss
from bitexp.train.optimizers import build_optimizer

ADAM = Adam(name="adamw", lr=0.01, weight_decay=0.0, betas=[0.9, 0.95], eps=1e-8, stochastic_rounding=False)
IMAGES = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 3


def network(seed: int = 0, **arguments: Any) -> nn.Module:
    torch.manual_seed(seed)
    sizes = {"patch": 4, "dim": 16, "depth": 2, "heads": 2, "dropout": 0.5} | arguments
    return build_model("vit", shape=(1, 8, 8), classes=3, **sizes)


class Counted(nn.Module):
    """A network that counts its forwards, and notes what it was given and in which state it was."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.taps, self.heads = model, {}, 2
        self.calls: list[tuple[Tensor, bool, bool]] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls.append((inputs, self.training, torch.is_grad_enabled()))
        return self.model(inputs)


def taught(own: float = 1.0, teacher: nn.Module | None = None, **losses: DistillationLoss) -> Task:
    task = Task(network(), ADAM)
    chosen = losses or {"logits": LogitsLoss()}
    task.distiller = Distiller(task.model, teacher or network(1), chosen, own)
    return task


def test_nothing_of_the_task_holds_the_teacher() -> None:
    task, alone = taught(), Task(network(), ADAM)
    assert list(task.state_dict()) == list(alone.state_dict())
    assert sum(p.numel() for p in task.parameters()) == sum(p.numel() for p in alone.parameters())
    assert len(list(task.modules())) == len(list(alone.modules()))
    assert task.distiller is not None
    held = {id(p) for group in build_optimizer(task.model, ADAM).param_groups for p in group["params"]}
    assert not held & {id(p) for p in task.distiller.teacher.model.parameters()}
    assert copy.deepcopy(task).distiller is task.distiller  # as the average of weights begins


def test_the_teacher_evaluates_without_gradient_and_keeps_its_weights() -> None:
    teacher = Counted(network(1))
    task = taught(teacher=teacher)
    before = copy.deepcopy(teacher.state_dict())
    task.train()
    optimizer = task.configure_optimizers()
    for _ in range(3):
        loss = task.training_step((IMAGES, LABELS), 0)
        loss.backward()
        optimizer.step()
    assert [call[1:] for call in teacher.calls] == [(False, False)] * 3  # eval mode, no gradient
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(teacher.state_dict()[name], before[name]) for name in before)


class Loader(pl.LightningDataModule):
    """Batches of 4 images."""

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(IMAGES, LABELS), batch_size=4)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_teacher_is_asked_once_for_each_batch(accumulate: int) -> None:
    teacher = Counted(network(1))
    task = taught(teacher=teacher)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, datamodule=Loader())
    assert trainer.global_step == 6 // accumulate
    assert [torch.equal(call[0], IMAGES[4 * (n % 3) :][:4]) for n, call in enumerate(teacher.calls)] == [
        True
    ] * 6


def test_the_loss_is_the_sum_by_weight_and_each_term_is_kept() -> None:
    losses = {
        "logits": LogitsLoss(weight=10.0, temperature=5.0),
        "hidden": HiddenLoss(weight=0.5),
        "attention": AttentionLoss(weight=100.0),
    }
    task = taught(0.25, **losses).eval()  # without dropout
    loss = task.training_step((IMAGES, LABELS), 0)
    assert set(task.terms) == {"cross_entropy", *losses}
    weights = {"cross_entropy": 0.25} | {name: term.weight for name, term in losses.items()}
    assert loss.item() == pytest.approx(sum(weights[n] * float(t) for n, t in task.terms.items()), rel=1e-6)
    assert all(term > 0 for term in task.terms.values())
    loss.backward()
    assert all(parameter.grad is not None for parameter in task.model.parameters())


def test_labels_are_not_looked_at_where_the_task_has_no_weight() -> None:
    task = taught(0.0).eval()
    one, other = (task.training_step((IMAGES, labels), 0).item() for labels in (LABELS, 2 - LABELS))
    assert one == other == float(task.terms["logits"])
    assert set(task.terms) == {"logits"}


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    same = network()
    losses = {"logits": LogitsLoss(), "hidden": HiddenLoss(), "attention": AttentionLoss()}
    task = taught(0.0, same, **losses).eval()
    assert task.training_step((IMAGES, LABELS), 0).item() == pytest.approx(0, abs=1e-6)


def test_a_teacher_may_be_of_another_size_where_logits_are_compared() -> None:
    wide = network(1, dim=32, depth=3, heads=4, patch=2)
    task = taught(teacher=wide)
    assert task.distiller is not None
    task.distiller.check(IMAGES[:2])
    assert torch.isfinite(task.training_step((IMAGES, LABELS), 0))


def test_bf16_is_of_the_teacher_alone() -> None:
    plain, half = taught().eval(), taught().eval()
    assert half.distiller is not None
    half.distiller.teacher.precision = "bf16"
    for task in (plain, half):
        task.training_step((IMAGES, LABELS), 0)
    assert plain.terms["cross_entropy"] == half.terms["cross_entropy"]
    assert plain.terms["logits"] != half.terms["logits"]
    torch.testing.assert_close(plain.terms["logits"], half.terms["logits"], rtol=0.05, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):  # of the student's training
        assert plain.distiller is not None
        teacher = plain.distiller.teacher(IMAGES).logits
    assert torch.equal(teacher, plain.distiller.teacher(IMAGES).logits)


@pytest.mark.parametrize(
    ("teacher", "losses", "said"),
    [
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 4)),
            {},
            "gives \\[4\\] for an input and the student \\[3\\]",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(63, 3)),
            {},
            "the teacher cannot take a batch of \\[2, 1, 8, 8\\]",
        ),
        (nn.Flatten(), {"hidden": HiddenLoss()}, "the teacher: Flatten does not say where its hidden states"),
        (nn.Flatten(), {"logits": LogitsLoss(weight=0.0)}, "no loss looks at it"),
        (network(depth=3), {"hidden": HiddenLoss()}, "the student has 2 and the teacher 3"),
        (network(patch=2), {"attention": AttentionLoss()}, "the student has 4 of them and the teacher 16"),
    ],
)
def test_what_does_not_fit_is_said_before_training(
    teacher: nn.Module, losses: dict[str, DistillationLoss], said: str
) -> None:
    def check() -> None:
        distiller = taught(1.0, teacher, **losses).distiller
        assert distiller is not None
        distiller.check(IMAGES[:2])

    with pytest.raises(ValueError, match=said):
        check()


def test_a_lack_of_memory_is_no_fault_of_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    distiller = taught().distiller
    assert distiller is not None

    def refuse(*_: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(distiller.teacher.model, "forward", refuse)
    with pytest.raises(RuntimeError, match="allocate memory"):
        distiller.check(IMAGES[:2])
