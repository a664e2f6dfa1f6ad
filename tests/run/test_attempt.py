"""What follows from a run's settings and data before the first step is what then happens."""

from __future__ import annotations

from typing import Any

import pytest

import bitexp.run.road
from bitexp.run.attempt import Attempt
from bitexp.run.fit import Fit

LONGER = {
    "as it is": [],
    "rest of an epoch": ["trainer.accumulate=3"],
    "all batches": ["trainer.train_batches=null", "trainer.accumulate=2"],
    "more batches than there are": ["trainer.train_batches=1000", "trainer.epochs=1"],
    "less data than a batch": ["data.batch_size=5000"],
    "so many steps": ["trainer.max_steps=3"],
    "more steps than there are": ["trainer.max_steps=100"],
}


@pytest.mark.parametrize("words", LONGER.values(), ids=list(LONGER))
def test_the_steps_of_an_attempt_are_those_that_are_taken(
    words: list[str], train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, seen = bitexp.run.road.measure, []

    def look(attempt: Attempt, fit: Fit) -> dict[str, Any]:
        seen.append((attempt.steps, attempt.batches, fit.trainer.num_training_batches))
        return measure(attempt, fit)

    monkeypatch.setattr(bitexp.run.road, "measure", look)
    outcome = train(*words)
    assert outcome.result["reason"] is None
    ((steps, batches, taken),) = seen
    assert steps == outcome.result["steps"]
    assert batches == taken


def test_the_facts_of_an_attempt_are_computed_once(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sums, of = [], bitexp.run.attempt.lr_decay_sum
    monkeypatch.setattr(bitexp.run.attempt, "lr_decay_sum", lambda *given: sums.append(given) or of(*given))
    outcome = train()
    assert len(sums) == 1
    card, log = (outcome.folder / name for name in ("MODEL_CARD.md", "train.log"))
    (line,) = [line for line in log.read_text().splitlines() if "lr x decay sums to" in line]
    assert line.partition("train  ")[2].strip() in card.read_text()
    assert f"sums to {outcome.result['lr_decay_sum']:.3g}" in line
