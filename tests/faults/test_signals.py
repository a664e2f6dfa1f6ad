"""Stopped by a signal, a run ends after a checkpoint and continues."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

import bitexp.run.evaluate
from tests.support.configs import SMALL
from tests.support.faults import EVERY_STEP, Undisturbed, assert_same, at, send
from tests.support.marks import others_slow
from tests.support.processes import Command
from tests.support.training import Train


@pytest.mark.parametrize(
    "number", others_slow([signal.SIGTERM, signal.SIGINT, signal.SIGUSR2], [signal.SIGTERM])
)
@pytest.mark.parametrize(
    ("hook", "count"),
    [("setup", 1), ("on_train_batch_start", 4), ("on_train_batch_start", 6), ("on_validation_start", 2)],
)
def test_a_signal_ends_a_run_after_a_checkpoint(
    number: int,
    hook: str,
    count: int,
    command: Command,
    train: Train,
    outputs: Path,
    undisturbed: Undisturbed,
) -> None:
    ended = command(*SMALL, first=at(hook, count, number))
    assert ended.code == 128 + number, ended.err
    name = signal.Signals(number).name
    assert f"Stopped by {name} after a checkpoint" in ended.out
    assert "The same command continues" in ended.out
    assert ended.err == ""
    (file,) = outputs.glob("*/*/result.json")
    result = json.loads(file.read_text())
    assert (result["status"], result["reason"], result["signal"]) == ("stopped", name, number)
    outcome = train()
    assert outcome.trained
    assert_same(outcome.folder, undisturbed("plain"))


def test_a_signal_during_the_test_stops_too(command: Command, train: Train, undisturbed: Undisturbed) -> None:
    def arrange_signal() -> None:
        test = bitexp.run.evaluate.evaluated

        def stop_and_test(*arguments: Any) -> dict[str, float]:
            bitexp.run.evaluate.evaluated = test
            send(signal.SIGTERM)
            return test(*arguments)

        bitexp.run.evaluate.evaluated = stop_and_test

    assert command(*SMALL, first=arrange_signal).code == 143
    assert_same(train().folder, undisturbed("plain"))


def test_a_second_ctrl_c_quits_at_once(command: Command, train: Train, undisturbed: Undisturbed) -> None:
    ended = command(*SMALL, EVERY_STEP, first=at("on_train_batch_start", 3, signal.SIGINT, signal.SIGINT))
    assert ended.code == -signal.SIGINT
    assert_same(train().folder, undisturbed("plain"))


def test_ctrl_c_ends_the_whole_multirun(command: Command, outputs: Path) -> None:
    ended = command("-m", *SMALL, "seed=0,1,2", first=at("on_train_batch_start", 2, signal.SIGINT))
    assert ended.code == 130
    assert len(list(outputs.glob("*/*/result.json"))) == 1
