"""The validation that is stored belongs to the weights that are tested."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from bitexp.common.errors import UserError
from bitexp.config.schema import read_settings
from bitexp.run.checks import check
from bitexp.run.road import run
from bitexp.train.pruning import Elsewhere
from tests.support.configs import SMALL, compose_config


def validated(folder: Path) -> dict[int, float]:
    """The validation losses of a run, by step."""
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "val/loss"]
    return {int(row["step"]): float(row["value"]) for row in rows}


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (["trainer.epochs=3", "trainer.validate_every=2"], [8, 12]),
        (["trainer.epochs=3", "trainer.validate_every=99"], [12]),
        (["trainer.epochs=3", "trainer.validate_every=2", "trainer.max_steps=11"], [8, 11]),
        (["trainer.epochs=3", "trainer.validate_every=2", "trainer.max_steps=6"], [6]),
        (["trainer.epochs=4", "trainer.validate_every=2"], [8, 16]),
        (["trainer.epochs=3", "trainer.validate_every=2", "callbacks.checkpoint.every_steps=1"], [8, 12]),
    ],
)
def test_the_weights_that_count_are_validated(words: list[str], steps: list[int], train: Any) -> None:
    outcome = train(*words)
    losses = validated(outcome.folder)
    assert list(losses) == steps
    assert outcome.result["steps"] == steps[-1]
    assert outcome.result["metrics"]["val/loss"] == pytest.approx(losses[steps[-1]], rel=1e-6)


def test_the_last_may_be_the_best(train: Any) -> None:
    words = ("trainer.epochs=3", "trainer.validate_every=2", "callbacks.checkpoint.monitor=val/loss")
    outcome = train(*words)
    losses = validated(outcome.folder)
    assert list(losses) == [8, 12]
    assert outcome.result["metrics"]["val/loss"] == pytest.approx(min(losses.values()), rel=1e-6)


def test_what_a_study_asks_for_needs_validation_data(outputs: Path) -> None:
    words = (*SMALL, "data.val_size=0")
    with pytest.raises(UserError, match=r"hydra.sweeper.objectives=val/loss needs validation data"):
        run(compose_config(*words), words, pruner=Elsewhere("val/loss"))
    assert not outputs.exists()


def test_an_end_of_no_metric_is_told() -> None:
    with pytest.raises(UserError, match=r"checkpoint\.mode=min does nothing without a metric"):
        check(read_settings(compose_config(*SMALL, "callbacks.checkpoint.mode=min")))
