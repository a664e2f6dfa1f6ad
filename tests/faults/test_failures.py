"""Failures of a run itself: a diverged loss, a crash, too little memory, missing data."""

from __future__ import annotations

import json
import resource
import sys
from functools import partial
from pathlib import Path

import pytest

import bitexp.run.fit
from bitexp.common.console import Report
from tests.support.configs import SMALL
from tests.support.faults import Undisturbed, arrange, assert_same
from tests.support.processes import Command
from tests.support.training import Train


def test_a_loss_that_is_no_number_fails_and_is_not_tried_again(command: Command, train: Train) -> None:
    words = ("optimizer.lr=1e30",)
    ended = command(*SMALL, *words)
    assert ended.code == 1
    assert "Failed: the training loss is nan at step" in ended.out
    assert ended.err == ""
    again = train(*words)
    assert not again.trained
    assert again.result["kind"] == "diverged"
    assert again.result["reason"].startswith("the training loss is nan")
    ended = command(*SMALL, *words)
    assert ended.code == 1
    assert "Failed before: the training loss is nan at step" in ended.out
    assert train(*words, "rerun=true").trained


def test_a_crash_is_recorded_and_tried_again(
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    undisturbed: Undisturbed,
) -> None:
    def crash() -> None:
        raise RuntimeError("boom\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(bitexp.run.fit, "build_trainer", bitexp.run.fit.build_trainer)
        arrange("on_train_batch_start", 6, crash)
        outcome = train(report=Report())
    assert (outcome.status, outcome.result["kind"]) == ("failed", "crash")
    assert outcome.result["reason"] == "RuntimeError: boom"
    assert "Failed: RuntimeError: boom" in capsys.readouterr().out
    assert "in crash" in (outcome.folder / "train.log").read_text()
    again = train()
    assert again.trained
    assert_same(again.folder, undisturbed("plain"))


def limit_memory(spare: int) -> None:
    """Lets this process map `spare` bytes more than it has."""
    mapped = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + spare, resource.RLIM_INFINITY))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_out_of_memory_in_training_fails_with_the_reason(command: Command, outputs: Path) -> None:
    ended = command(
        *SMALL,
        "model.hidden=[2048,2048]",
        first=partial(arrange, "on_train_batch_start", 1, partial(limit_memory, 10_000_000)),
    )
    assert ended.code == 1, ended.err
    assert "Failed: out of memory (" in ended.out
    assert "smaller data.batch_size" in ended.out
    (file,) = outputs.glob("*/*/result.json")
    assert json.loads(file.read_text())["kind"] == "out_of_memory"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_model_that_does_not_fit_into_memory_is_told(command: Command, outputs: Path) -> None:
    ended = command(*SMALL, "model.hidden=[20000,20000]", first=partial(limit_memory, 400_000_000))
    assert ended.code == 1
    assert ended.err.startswith("bitexp: out of memory (")
    assert "Traceback" not in ended.err
    assert not list(outputs.glob("*/*"))


def test_missing_data_are_told_before_anything_is_made(
    command: Command, outputs: Path, tmp_path: Path
) -> None:
    ended = command("data=cifar10", f"data.data_dir={tmp_path}/nowhere", "logger=csv")
    assert ended.code == 2
    assert "CIFAR-10 was not found" in ended.err
    assert f"{tmp_path}/nowhere" in ended.err
    assert "data=digits is embedded" in ended.err
    assert "Traceback" not in ended.err
    assert not outputs.exists()
