"""A study of real runs whose process is killed, stopped, or whose trials fail."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from optuna.trial import TrialState

import bitexp.run.fit

OPTUNA = ("hydra/sweeper=optuna", "hydra.sweeper.sampler.name=RandomSampler")
LR = "optimizer.lr=tag(log, interval(0.001, 0.1))"
EVERY_STEP = "callbacks.checkpoint.every_steps=1"


class Steps(pl.Callback):
    """Sends this process a signal after so many steps, of all runs together."""

    def __init__(self, left: list[int], number: int) -> None:
        self.left, self.number = left, number

    def on_train_batch_end(self, *_: Any) -> None:
        self.left[0] -= 1
        if self.left[0] == 0:
            os.kill(os.getpid(), self.number)


def after_steps(count: int, number: int) -> Callable[[], None]:
    """Arranges for a signal in the middle of training; a small run has eight steps."""

    def arrange() -> None:
        build, left = bitexp.run.fit.build_trainer, [count]

        def build_with(settings: Any, callbacks: list[pl.Callback], loggers: Any, folder: Any) -> pl.Trainer:
            return build(settings, [*callbacks, Steps(left, number)], loggers, folder)

        bitexp.run.fit.build_trainer = build_with

    return arrange


def remains(trials: Any) -> list[Any]:
    """What two studies must have alike: what was drawn, and what came of it to the bit."""
    runs = [Path(trial.user_attrs["run"]) for trial in trials]
    return [
        (
            trial.number,
            trial.params,
            trial.values,
            (run / "packed.safetensors").read_bytes(),
            result["metrics"],
        )
        for trial, run in zip(trials, runs, strict=True)
        if (result := json.loads((run / "result.json").read_text()))
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, command: Any, small: Any, load: Any) -> list[Any]:
    """What remains of a study of three trials to which nothing happens."""
    place = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITEXP_OUTPUTS", str(place))
        ended = command("-m", *small, *OPTUNA, LR, "hydra.sweeper.n_trials=3")
    assert ended.code == 0, ended.err
    (journal,) = place.glob("*/studies/*.journal")
    return remains(load(journal))


@pytest.mark.slow
def test_a_killed_trial_goes_on_from_its_checkpoint_as_if_nothing_had_happened(
    sweep: Any, studies: Any, undisturbed: list[Any], outputs: Path
) -> None:
    words = (LR, "hydra.sweeper.n_trials=3")
    for steps in (8 + 3, 3):
        ended = sweep(*words, EVERY_STEP, first=after_steps(steps, signal.SIGKILL))
        assert ended.code == -signal.SIGKILL
    folders = {path.parent for path in outputs.glob("*/*/config.yaml")}
    assert len(folders) == 2
    ended = sweep(*words, EVERY_STEP)
    assert ended.code == 0, ended.err
    assert re.search(r"Resuming trial 1: its worker \S+:\d+ is gone", ended.out)
    trials = studies()
    assert remains(trials) == undisturbed
    assert trials[1].user_attrs["begun"] == 3
    run = Path(trials[1].user_attrs["run"])
    assert run in folders
    assert "resumes    from last.ckpt" in (run / "train.log").read_text()
    assert len(json.loads((run / "provenance.json").read_text())["attempts"]) == 3


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_stopped_study_goes_on_where_it_was(
    number: int, sweep: Any, studies: Any, undisturbed: list[Any]
) -> None:
    words = (LR, "hydra.sweeper.n_trials=3")
    ended = sweep(*words, first=after_steps(8 + 5, number))
    assert ended.code == 128 + number, ended.err
    assert "Traceback" not in ended.err
    assert [trial.state for trial in studies()] == [TrialState.COMPLETE, TrialState.RUNNING]
    ended = sweep(*words)
    assert ended.code == 0, ended.err
    assert remains(studies()) == undisturbed


def test_a_trial_that_diverges_is_recorded_and_the_sweep_goes_on(sweep: Any, studies: Any) -> None:
    words = (
        "optimizer.lr=1e30,0.01",
        "hydra.sweeper.n_trials=null",
        "hydra.sweeper.sampler.name=GridSampler",
    )
    for done in (0, 2):
        ended = sweep(*words)
        assert ended.code == (1 if done == 0 else 0)
        states = {trial.params["optimizer.lr"]: trial for trial in studies()}
        assert len(studies()) == 2
        assert states[0.01].state == TrialState.COMPLETE
        assert states[1e30].state == TrialState.FAIL
        assert states[1e30].user_attrs["kind"] == "diverged"
        assert "the training loss is nan" in states[1e30].user_attrs["reason"]
        assert re.search(r"  failed: \d: optimizer.lr=1e\+30: the training loss is nan", ended.out)
        assert ": 1 finished, 1 failed; budget 2." in ended.out


def crash(count: int) -> None:
    """Arranges for the first runs of a process to crash."""
    fit, left = bitexp.run.fit.Fit.run, [count]

    def run_or_crash(self: Any, *arguments: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise RuntimeError("the disk made a noise")
        return fit(self, *arguments)

    bitexp.run.fit.Fit.run = run_or_crash  # type: ignore[method-assign]


def test_a_crash_is_tried_again_at_once_and_again_with_the_next_command(sweep: Any, studies: Any) -> None:
    words = (LR, "hydra.sweeper.n_trials=2")
    ended = sweep(*words, "hydra.sweeper.retries=1", first=partial(crash, 3))
    assert "Retrying trial 0, which failed: RuntimeError: the disk made a noise" in ended.out
    assert ended.code == 1
    zero, one = studies()
    assert zero.state == TrialState.FAIL
    assert one.state == TrialState.COMPLETE
    assert one.user_attrs["earlier_failures"] == ["RuntimeError: the disk made a noise"]
    ended = sweep(*words)
    assert ended.code == 0, ended.err
    assert "1 of 2 trials done; retrying 1 that failed" in ended.out
    assert "[2/2] 2: finished" in ended.out
    assert ": 2 finished; budget 2." in ended.out
    assert studies()[2].params == zero.params
    assert studies()[2].user_attrs["run"] == zero.user_attrs["run"]


def test_too_many_failures_end_the_sweep(sweep: Any, studies: Any) -> None:
    words = (LR, "hydra.sweeper.n_trials=9", "hydra.sweeper.retries=0", "hydra.sweeper.max_failures=1")
    ended = sweep(*words, first=partial(crash, 9))
    assert ended.code == 1
    assert len(studies()) == 2
    assert "2 trials failed here, more than hydra.sweeper.max_failures=1: the sweep stops here" in ended.out


def test_a_sweep_in_which_no_config_works_ends_at_once(sweep: Any, studies: Any) -> None:
    ended = sweep("data.batch_size=32,64", "data.val_size=0.0", "hydra.sweeper.n_trials=2")
    assert ended.code == 2, ended.out + ended.err
    assert "Traceback" not in ended.err
