"""Runs that their study gives up on: they end after a checkpoint, and can be finished later all the same."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState

from bitexp.common.errors import Pruned
from bitexp.sweep.storage import STORAGE
from bitexp.sweep.trial_reporter import STUDY, StudyOfJobs, TrialReporter, reporter_of
from bitexp.train.pruning import Elsewhere, Pruning

ROOT = Path(__file__).parents[2]
OPTUNA = (
    "hydra/sweeper=optuna",
    "hydra.sweeper.sampler.name=RandomSampler",
    "optimizer.lr=interval(0.01,0.1)",
)
HOPELESS = "hydra.sweeper.pruner={name: ThresholdPruner, lower: 2.0}"  # no accuracy is above


def only(outputs: Path, pattern: str) -> Path:
    (path,) = outputs.glob(pattern)
    return path


def packed(outcome: Any) -> bytes:
    return bytes((outcome.folder / "packed.safetensors").read_bytes())


def test_a_pruned_run_ends_after_its_checkpoint_and_everybody_says_so(
    command: Any, small: Any, outputs: Path, load: Any, train: Any
) -> None:
    ended = command("-m", *small, *OPTUNA, HOPELESS, "hydra.sweeper.n_trials=2")
    assert ended.code == 0, ended.err
    assert ended.err == ""
    assert ": 2 pruned; budget 2." in ended.out
    assert "[2/2] 1: pruned · val/accuracy 0." in ended.out
    trials = load(only(outputs, "*/studies/*.journal"))
    assert [trial.state for trial in trials] == [TrialState.PRUNED] * 2
    for trial in trials:
        run = Path(trial.user_attrs["run"])
        result = json.loads((run / "result.json").read_text())
        assert (result["status"], result["kind"]) == ("pruned", None)
        (value,) = trial.intermediate_values.values()
        assert list(trial.intermediate_values) == [500]
        assert (
            result["reason"]
            == f"val/accuracy {value:.4f} after 50% of the steps"
            == trial.user_attrs["reason"]
        )
        record = json.loads(only(outputs, f"*/studies/*/jobs/{trial.number}.json").read_text())
        assert (record["status"], record["run"]) == ("pruned", str(run))
        assert (run / "checkpoints" / "last.ckpt").exists()
        assert "pruned at val/accuracy" in (run / "train.log").read_text()

    lr = f"optimizer.lr={trials[0].params['optimizer.lr']}"
    finished = train(lr)
    assert finished.folder == Path(trials[0].user_attrs["run"])
    assert "resumes    from last.ckpt" in (finished.folder / "train.log").read_text()
    assert finished.result["status"] == "finished"
    assert finished.result["steps"] == 8
    undisturbed = train(lr, "rerun=true")
    assert packed(undisturbed) == packed(finished)
    assert undisturbed.result["metrics"] == finished.result["metrics"]


def test_the_best_are_not_pruned_and_every_validation_is_reported(
    command: Any, small: Any, outputs: Path, load: Any
) -> None:
    """With trials in a row from good to bad, a median pruner lets the good ones finish."""
    words = ("optimizer.lr=0.05,1e-9", "hydra.sweeper.sampler={name: GridSampler}", "trainer.epochs=4")
    words += ("hydra.sweeper.n_trials=null", "seed=3,4", "trainer.train_batches=20", "trainer.eval_batches=3")
    pruner = "hydra.sweeper.pruner={name: PercentilePruner, percentile: 50.0, n_startup_trials: 1}"
    ended = command("-m", *small, *OPTUNA[:1], *words, pruner)
    assert ended.code == 0, ended.err
    trials = load(only(outputs, "*/studies/*.journal"))
    assert len(trials) == 4
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert {0.05} <= {trial.params["optimizer.lr"] for trial in complete}
    assert all(trial.params["optimizer.lr"] == 1e-9 for trial in pruned)
    for trial in complete:
        assert list(trial.intermediate_values) == [250, 500, 750, 1000]
        result = json.loads((Path(trial.user_attrs["run"]) / "result.json").read_text())
        assert result["metrics"]["val/accuracy"] == trial.value
        assert trial.intermediate_values[1000] == pytest.approx(trial.value, rel=1e-6)


def test_a_run_that_its_study_gives_up_on_at_the_very_end_is_finished(
    command: Any, small: Any, outputs: Path, load: Any
) -> None:
    pruner = "hydra.sweeper.pruner={name: ThresholdPruner, lower: 2.0, n_warmup_steps: 1000}"
    ended = command("-m", *small, *OPTUNA, pruner, "hydra.sweeper.n_trials=1")
    assert ended.code == 0, ended.err
    (trial,) = load(only(outputs, "*/studies/*.journal"))
    assert trial.state == TrialState.COMPLETE


# the callback by itself


class Fixed:
    """A pruner that has made up its mind, and remembers what it was asked."""

    metric = "val/loss"

    def __init__(self, verdict: bool) -> None:
        self.verdict = verdict
        self.asked: list[tuple[float, int]] = []

    def __call__(self, value: float, permille: int) -> bool:
        self.asked.append((value, permille))
        return self.verdict


def trainer(step: int = 3, broadcast: Callable[[str], str] = lambda reason: reason, **changes: Any) -> Any:
    parts = {"sanity_checking": False, "global_step": step, "callback_metrics": {"val/loss": 0.5}}
    parts |= {"strategy": SimpleNamespace(broadcast=broadcast), "should_stop": False}
    return SimpleNamespace(**parts | changes)


SCHEDULE: Any = SimpleNamespace(total=lambda trainer: 9)


def test_the_pruner_hears_the_value_and_the_share_of_the_steps() -> None:
    callback = Pruning(reporter := Fixed(True), SCHEDULE)
    callback.on_validation_end(trainer(3), None)
    assert reporter.asked == [(0.5, 333)]
    with pytest.raises(Pruned, match=r"val/loss 0.5000 after 33% of the steps"):
        callback.on_train_epoch_end(trainer(3), None)


@pytest.mark.parametrize("changes", [{"sanity_checking": True}, {"step": 9}])
def test_a_sanity_check_and_the_end_are_no_reason(changes: dict[str, Any]) -> None:
    callback = Pruning(Fixed(True), SCHEDULE)
    callback.on_validation_end(trainer(**changes), None)
    callback.on_train_epoch_end(trainer(**changes), None)


def test_the_other_ranks_obey_the_first() -> None:
    callback = Pruning(Elsewhere("val/loss"), SCHEDULE)
    callback.on_validation_end(told := trainer(broadcast=lambda reason: "the first says so"), None)
    with pytest.raises(Pruned, match="the first says so"):
        callback.on_train_epoch_end(told, None)
    callback.on_validation_end(told := trainer(broadcast=lambda reason: ""), None)
    callback.on_train_epoch_end(told, None)


# the reporter by itself


def test_what_a_job_has_to_know_survives_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    study = StudyOfJobs("a", "postgresql://me:p%40ss'\"@h/db", "val/loss", {"name": "MedianPruner", "n": [1]})
    text = study.to_text()
    assert b"p%40ss" not in base64.urlsafe_b64decode(text + "==")
    said: list[str] = []
    monkeypatch.delenv(STORAGE, raising=False)
    TrialReporter(StudyOfJobs.from_text(text), 0, said.append)(0.5, 500)
    assert said == [
        f"the study a cannot be reached, so nothing is pruned: this process has not inherited {STORAGE}"
    ]
    monkeypatch.setenv(STORAGE, study.storage)
    assert text.replace("-", "").replace("_", "").isalnum()
    assert StudyOfJobs.from_text(text) == study
    monkeypatch.delenv(STUDY, raising=False)
    assert reporter_of(0, print) is None
    monkeypatch.setenv(STUDY, text)
    assert isinstance(reporter_of(0, print), TrialReporter)
    monkeypatch.setenv(STUDY, StudyOfJobs("a", "j", "", None).to_text())
    assert reporter_of(0, print) is None


def test_a_continued_run_reports_nothing_twice(opened: Any, define: Any, journal: Path, load: Any) -> None:
    pruner = {"name": "ThresholdPruner", "lower": 0.5}
    study = opened(journal, 2, define(pruner=pruner))
    study.next()
    told = StudyOfJobs("study", str(journal), "val/accuracy", pruner)
    said: list[str] = []
    first = TrialReporter(told, 0, said.append)
    assert not first(0.6, 250)
    assert first(0.4, 500)
    assert not first(0.4, 500)  # asked at the same step again, it has nothing to say
    second = TrialReporter(told, 0, said.append)  # the run goes on from a checkpoint, in another process
    assert second(0.9, 500)
    assert not second(0.7, 750)
    assert load(journal)[0].intermediate_values == {250: 0.6, 500: 0.4, 750: 0.7}
    assert said == []
    for each in (first, second, study):
        each.close()


def test_without_a_pruner_trials_are_only_reported(opened: Any, journal: Path, load: Any) -> None:
    study = opened(journal, 1)
    study.next()
    reporter = TrialReporter(StudyOfJobs("study", str(journal), "val/accuracy", None), 0, print)
    assert not reporter(0.1, 500)
    assert load(journal)[0].intermediate_values == {500: 0.1}
    study.close()


def test_a_study_that_cannot_be_reached_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said: list[str] = []
    reporter = TrialReporter(
        StudyOfJobs("gone", str(tmp_path / "file" / "j"), "val/accuracy", None), 0, said.append
    )
    assert not reporter(0.1, 250)
    assert not reporter(0.1, 500)
    assert len(said) == 1
    assert said[0].startswith("the study gone cannot be reached, so nothing is pruned: ")


# two processes that are one run


@pytest.mark.slow
def test_two_processes_are_pruned_together_and_finish_together_later(
    outputs: Path, small: Any, load: Any
) -> None:
    def bitexp(*words: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "bitexp", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
        return done.returncode, done.stdout, done.stderr

    ddp = (*small, "trainer=ddp", "data.batch_size=32")
    code, out, err = bitexp("-m", *ddp, *OPTUNA, HOPELESS, "hydra.sweeper.n_trials=2")
    assert code == 0, out + err
    assert ": 2 pruned; budget 2." in out
    assert "Traceback" not in err
    trials = load(only(outputs, "*/studies/*.journal"))
    assert [trial.state for trial in trials] == [TrialState.PRUNED] * 2
    code, out, err = bitexp(*ddp, f"optimizer.lr={trials[0].params['optimizer.lr']}")
    assert code == 0, out + err
    assert "resumes    from last.ckpt" in out
    run = Path(trials[0].user_attrs["run"])
    assert json.loads((run / "result.json").read_text())["status"] == "finished"
