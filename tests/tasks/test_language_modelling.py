"""Loss, perplexity and bits per byte against torchmetrics, over batches of unequal sizes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics.text import Perplexity

from bitexp.config.optimization import Adam
from bitexp.tasks import TASKS
from bitexp.tasks.language_modelling import LanguageModelling
from bitexp.train import progress

VOCABULARY = 11
ADAM = Adam(name="adamw", lr=0.01, weight_decay=0.0, betas=[0.9, 0.95], eps=1e-8, stochastic_rounding=False)
BYTES = {"val": 3.7, "test": 1.2}


class Text(pl.LightningDataModule):
    """Batches of unequal sizes, one of them in the last place so small that a plain mean would be off."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        shapes = [(4, 7), (4, 7), (2, 7), (1, 2)]
        self.batches = {
            part: [(self.draw(shape), self.draw(shape)) for shape in shapes] for part in ("val", "test")
        }

    @staticmethod
    def draw(shape: tuple[int, int]) -> Tensor:
        return torch.randint(VOCABULARY, shape)

    def bytes_per_token(self, part: str) -> float:
        return BYTES[part]

    def loader(self, part: str) -> Any:
        return torch.utils.data.DataLoader(self.batches[part], batch_size=None)

    def val_dataloader(self) -> Any:
        return self.loader("val")

    def test_dataloader(self) -> Any:
        return self.loader("test")


def make(scale: float = 1.0) -> LanguageModelling:
    """The task with a model that knows the token before, and nothing else."""
    torch.manual_seed(1)
    model = nn.Embedding(VOCABULARY, VOCABULARY)
    with torch.no_grad():
        model.weight.mul_(scale)
    return LanguageModelling(model, ADAM, vocabulary=VOCABULARY)


def measured(task: LanguageModelling, data: Text, part: str, precision: Any = "32-true") -> dict[str, float]:
    trainer = pl.Trainer(
        accelerator="cpu",
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    (trainer.validate if part == "val" else trainer.test)(task, datamodule=data, verbose=False)
    assert trainer.logged_metrics == {}  # the loggers are served by the callback Throughput
    return progress.measured(trainer, f"{part}/")


def oracle(task: LanguageModelling, data: Text, part: str) -> float:
    """torchmetrics' perplexity over all tokens of a part."""
    metric = Perplexity()
    for tokens, targets in data.batches[part]:
        metric.update(task(tokens).detach().float(), targets)
    return float(metric.compute())


@pytest.mark.parametrize("part", ["val", "test"])
def test_perplexity_loss_and_bits_per_byte_are_those_of_torchmetrics(part: str) -> None:
    task = make()
    for data in (Text(), Text(seed=2)):  # nothing of the first is left
        expected = oracle(task, data, part)
        found = measured(task, data, part)
        assert found == {
            f"{part}/perplexity": pytest.approx(expected, rel=1e-5),
            f"{part}/loss": pytest.approx(math.log(expected), rel=1e-5),
            f"{part}/bits_per_byte": pytest.approx(math.log2(expected) / BYTES[part], rel=1e-5),
        }
    losses = [task.training_step(batch, 0).item() for batch in data.batches[part]]
    assert abs(sum(losses) / len(losses) - math.log(expected)) > 0.01


def test_the_training_loss_is_the_mean_surprise_at_the_next_token() -> None:
    task, data = make(), Text()
    batch = tokens, targets = data.batches["val"][0]
    shares = task.model(tokens).softmax(-1).gather(-1, targets[..., None])
    loss = task.training_step(batch, 0)
    assert loss.item() == pytest.approx(-shares.log().mean().item(), rel=1e-6)
    loss.backward()
    assert task.model.weight.grad is not None
    assert task.model.weight.grad.any()


def test_guessing_costs_the_logarithm_of_the_vocabulary() -> None:
    found = measured(make(scale=0.0), Text(), "test")
    assert found["test/perplexity"] == pytest.approx(VOCABULARY, rel=1e-6)
    assert found["test/loss"] == pytest.approx(math.log(VOCABULARY), rel=1e-6)


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_bf16_model_is_measured_in_full_precision(part: str) -> None:
    """bf16 itself would count no further than 256 times the first batch."""
    task, data = make(), Text()
    task.model.bfloat16()
    assert task.training_step(data.batches[part][0], 0).dtype == torch.float32
    expected = math.log(oracle(task, data, part))
    data.batches[part] *= 300
    assert measured(task, data, part, "bf16-true")[f"{part}/loss"] == pytest.approx(expected, rel=1e-5)
    task.float()  # as for the test after the training
    assert measured(task, data, part)[f"{part}/loss"] == pytest.approx(expected, rel=1e-5)


def test_a_loss_that_is_no_number_is_told() -> None:
    task, data = make(), Text()
    with torch.no_grad():
        task.model.weight[data.batches["val"][1][0][0, 0]] = math.nan
    assert all(math.isnan(value) for value in measured(task, data, "val").values())


def test_a_loss_beyond_all_numbers_gives_a_perplexity_that_is_one() -> None:
    found = measured(make(scale=1e4), Text(), "val")
    assert found["val/loss"] > 1000
    assert 1e37 < found["val/perplexity"] < math.inf


def test_amounts_are_tokens_and_metrics_are_better_when_they_are_less() -> None:
    assert TASKS.get("language_modelling") is LanguageModelling
    assert LanguageModelling.unit == "tokens"
    assert [make().amount(batch) for batch in Text().batches["val"]] == [28, 28, 14, 2]
    assert set(LanguageModelling.measures) == set(measured(make(), Text(), "val"))
    assert set(LanguageModelling.measures.values()) == {"min"}
    assert f"test/{LanguageModelling.headline}" in measured(make(), Text(), "test")


def test_a_twin_runs_its_own_network_whatever_the_training_left_behind() -> None:
    """DDP leaves the bound `forward` of the trained task on it, as an attribute of its own."""
    task, other = make(), make(scale=0.0)
    task.forward = task.forward
    tokens = Text().batches["val"][0][0]
    assert torch.equal(task.with_model(other.model)(tokens), other.model(tokens))
    assert torch.equal(task(tokens), task.model(tokens))
