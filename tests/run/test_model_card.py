"""The model card of a run: its numbers are those of the files, and its loss loses nothing else."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

import bitexp.run.road
import bitexp.run.tidy
import bitexp.track.provenance
from bitexp.run.model_card import fenced


def test_a_run_ends_with_a_card(train: Any) -> None:
    outcome = train("quantizer=binary")
    text = (outcome.folder / "MODEL_CARD.md").read_text()
    metrics = outcome.result["metrics"]
    accuracy = f"{metrics['test/accuracy']:.6g}"
    made = json.loads((outcome.folder / "provenance.json").read_text())["attempts"][-1]
    typed = (outcome.folder / "overrides.yaml").read_text()
    for words in (
        "# first_steps, binary, seed 0",
        f"| test/accuracy | {accuracy} | {accuracy} |",
        f"| val/accuracy | {metrics['val/accuracy']:.6g} |  |",
        "- `head`",
        f"source {made['source']}",
        f"torch {made['versions']['torch']}",
        "Shortened by trainer.train_batches and trainer.eval_batches.",
        f"```bash\n{made['command']}\n```",
        "int8 add",
        f"any sweep:\n\n```bash\npython -m bitexp {shlex.join(yaml.safe_load(typed))}\n```",
    ):
        assert words in text


def test_outside_of_a_checkout_there_is_a_card_too(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bitexp.track.provenance, "git_state", lambda _: None)
    text = (train().folder / "MODEL_CARD.md").read_text()
    assert "bitexp outside of a git checkout, source " in text


def test_what_monitored_says_so(train: Any) -> None:
    outcome = train("callbacks.checkpoint.monitor=val/accuracy")
    assert "chosen on the validation part" in (outcome.folder / "MODEL_CARD.md").read_text()


def test_a_run_that_fails_has_none(train: Any) -> None:
    outcome = train("optimizer.lr=1e30", "optimizer=sgd", "trainer.log_every=1")
    assert outcome.status == "failed"
    assert not (outcome.folder / "MODEL_CARD.md").exists()


@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyError("gpus")])
def test_a_card_that_cannot_be_written_loses_no_result(
    error: Exception, train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(bitexp.run.tidy, "write_card", refuse)
    outcome = train()
    assert outcome.status == "finished"
    assert json.loads((outcome.folder / "result.json").read_text())["status"] == "finished"
    assert "the model card could not be written" in (outcome.folder / "train.log").read_text()


def test_a_card_that_was_never_written_is_written_when_the_run_is_asked_for_again(train: Any) -> None:
    """As after a kill between the result and the card."""
    card = train().folder / "MODEL_CARD.md"
    text = card.read_text()
    card.unlink()
    assert not train().trained
    assert card.read_text() == text


def test_costs_that_cannot_be_measured_lose_no_result(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no such operation")

    monkeypatch.setattr(bitexp.run.road, "measured_costs", refuse)
    outcome = train()
    assert outcome.status == "finished"
    assert "cost/total_macs" not in outcome.result["metrics"]
    assert (outcome.folder / "MODEL_CARD.md").exists()
    assert "cost of inference could not be measured" in (outcome.folder / "train.log").read_text()


def test_a_command_cannot_leave_its_block(tmp_path: Path) -> None:
    first, text, last = fenced("echo ```` `x`")
    assert first == "`````bash"
    assert last == "`````"
    assert text == "echo ```` `x`"
