"""`hydra/sweeper=optuna` as a user gives it: real runs, small ones."""

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
import yaml
from optuna.trial import TrialState

import bitexp.run.fit

OPTUNA = ("hydra/sweeper=optuna", "hydra.sweeper.sampler.name=RandomSampler")
LR = "optimizer.lr=tag(log, interval(0.001, 0.1))"
EVERY_STEP = "callbacks.checkpoint.every_steps=1"


@pytest.fixture
def sweep(command: Any, small: Any) -> Callable[..., Any]:
    """Gives a command of a study of the small run."""
    return lambda *words, **options: command("-m", *small, *OPTUNA, *words, **options)


@pytest.fixture
def studies(outputs: Path, load: Any) -> Callable[..., Any]:
    """The trials of each study, by the words that set it apart, or of the only one."""

    def read(name: str | None = None) -> Any:
        paths = {path.stem: path for path in outputs.glob("*/studies/*.journal")}
        if name is None:
            (path,) = paths.values()
        else:
            path = next(path for stem, path in paths.items() if name in stem.split("-"))
        return load(path)

    return read


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

        def build_with(settings: Any, callbacks: list[pl.Callback], loggers: Any) -> pl.Trainer:
            return build(settings, [*callbacks, Steps(left, number)], loggers)

        bitexp.run.fit.build_trainer = build_with

    return arrange


def result_of(trial: Any) -> dict[str, Any]:
    return dict(json.loads((Path(trial.user_attrs["run"]) / "result.json").read_text()))


# the budget, and what is said


def test_a_study_makes_its_budget_and_says_what_it_found(sweep: Any, studies: Any, outputs: Path) -> None:
    ended = sweep(LR, "quantizer=choice(full,binary)", "hydra.sweeper.n_trials=3")
    assert ended.code == 0, ended.err
    assert ended.err == ""
    trials = studies()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    for trial in trials:
        config = yaml.safe_load((Path(trial.user_attrs["run"]) / "config.yaml").read_text())
        assert config["optimizer"]["lr"] == trial.params["optimizer.lr"]
        assert 0.001 <= trial.params["optimizer.lr"] <= 0.1
        result = result_of(trial)
        assert result["status"] == "finished"
        assert result["metrics"]["val/accuracy"] == trial.value
        record = outputs / "first_steps" / "studies" / studies_name(outputs) / "jobs" / f"{trial.number}.json"
        assert json.loads(record.read_text())["run"] == trial.user_attrs["run"]
    lines = ended.out.splitlines()
    assert re.match(r"Study study-[0-9a-f]{8}: maximize val/accuracy by RandomSampler; 3 trials$", lines[0])
    for number in range(3):
        assert any(
            line.startswith(f"[{number + 1}/3] {number}: finished · {trials[number].value:.4f} ·")
            for line in lines
        )
    best = max(trials, key=lambda trial: trial.value)
    row = [line for line in lines if Path(best.user_attrs["run"]).name in line][-1]
    cells = re.split(r"\s{2,}", row.strip())
    assert f"{best.value:.4f}" in cells
    assert f"{result_of(best)['metrics']['test/accuracy']:.4f}" in cells
    assert f"{best.params['optimizer.lr']:.3g}" in cells
    account = next(line for line in lines if "; budget 3." in line)
    assert account.startswith(f"{studies_name(outputs)}: 3 finished; budget 3. {outputs}")
    assert lines[-1].startswith("Open it with: optuna-dashboard ")

    again = sweep(LR, "quantizer=choice(full,binary)", "hydra.sweeper.n_trials=4")
    assert again.code == 0, again.err
    assert "; 3 of 4 trials done" in again.out
    assert [trial.params for trial in studies()][:3] == [trial.params for trial in trials]
    assert len(studies()) == 4
    assert len(list(outputs.glob("*/*/result.json"))) == 4


def studies_name(outputs: Path) -> str:
    (path,) = outputs.glob("*/studies/*.journal")
    return path.stem


def test_what_is_typed_wins_over_the_params_of_a_sweep(command: Any, small: Any, studies: Any) -> None:
    words = ("-m", *small, "+sweeps=tune", "hydra.sweeper.n_trials=1", "hydra.sweeper.sampler.seed=3")
    ended = command(*words, "quantizer=full", "optimizer.weight_decay=choice(0.0,0.1)", "seed=5")
    assert ended.code == 0, ended.err
    (trial,) = studies()
    space = trial.distributions
    assert space["optimizer.lr"].log
    assert space["optimizer.weight_decay"].choices == (0.0, 0.1)
    assert space.keys() == {"optimizer.lr", "optimizer.weight_decay"}
    config = yaml.safe_load((Path(trial.user_attrs["run"]) / "config.yaml").read_text())
    assert (config["quantizer"]["name"], config["seed"]) == ("full", 5)


def test_a_grid_or_brute_force_ends_by_itself(sweep: Any, studies: Any) -> None:
    words = ("hydra.sweeper.n_trials=null", "seed=0", "quantizer=glob(full*)", "model.hidden=[8],[8,8]")
    ended = sweep("hydra.sweeper.sampler.name=GridSampler", *words)
    assert ended.code == 0, ended.err
    drawn = {(trial.params["quantizer"], trial.params["model.hidden"]) for trial in studies()}
    assert drawn == {(q, h) for q in ("full", "full_norm") for h in ("[8]", "[8,8]")}
    assert len(studies()) == 4


def test_a_study_for_each_value_of_a_key(sweep: Any, studies: Any) -> None:
    ended = sweep(LR, "quantizer=full,binary", "hydra.sweeper.per=[quantizer]", "hydra.sweeper.n_trials=2")
    assert ended.code == 0, ended.err
    for name in ("full", "binary"):
        trials = studies(name)
        assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
        assert all(trial.params.keys() == {"optimizer.lr"} for trial in trials)
        assert all(result_of(trial)["quantizer"].startswith(name) for trial in trials)
    rows = [line.split() for line in ended.out.splitlines() if line.strip().startswith(("full ", "binary "))]
    assert [row[0] for row in rows] == ["full", "binary"]


def test_several_objectives_end_in_a_front(sweep: Any, studies: Any) -> None:
    words = ("hydra.sweeper.objectives=[headline,size/total_bytes]", "model.hidden=[8],[64]", "seed=0")
    ended = sweep("hydra.sweeper.sampler.name=BruteForceSampler", "hydra.sweeper.n_trials=null", *words)
    assert ended.code == 0, ended.err
    assert "maximize val/accuracy and minimize size/total_bytes" in ended.out
    assert "The Pareto front: no other trial is better" in ended.out
    for trial in studies():
        metrics = result_of(trial)["metrics"]
        assert trial.values == [metrics["val/accuracy"], metrics["size/total_bytes"]]


# killed, stopped, failed


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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


# the files it writes


def test_the_best_setting_is_written_where_tuned_reads_it(
    studies: Any, tmp_path: Path, command: Any, small: Any
) -> None:
    (tmp_path / "mine" / "tuning").mkdir(parents=True)
    file = tmp_path / "mine" / "tuning" / "first_steps.yaml"
    file.write_text("# measured\nternary_mean: {lr: 0.5}\nfull: {lr: 0.25}\n")

    def only_mine() -> None:
        import bitexp.sweep.tuned

        access = os.access
        bitexp.sweep.tuned.os.access = lambda path, mode: "/mine" in str(path) and access(path, mode)  # type: ignore[assignment]

    place = ("--config-dir", str(tmp_path / "mine"))
    words = (LR, "hydra.sweeper.write_tuned=true", "hydra.sweeper.n_trials=2", "seed=0")
    ended = command(*place, "-m", *small, *OPTUNA, *words, first=only_mine)
    assert ended.code == 0, ended.err
    best = max(studies(), key=lambda trial: trial.value)
    assert f"{file}: ternary_mean has the setting of trial {best.number} of study-" in ended.out
    comment, line, full = file.read_text().splitlines()
    assert (comment, full) == ("# measured", "full: {lr: 0.25}")
    (setting,) = yaml.safe_load(line).values()
    assert setting == {"lr": pytest.approx(best.params["optimizer.lr"], rel=5e-3)}


def test_no_password_is_kept_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitexp.track.provenance import command_line

    words = ["hydra.sweeper.storage=postgresql://me:s3cr3t@host/db", "task.url=https://host:80/a", "seed=0"]
    monkeypatch.setattr("sys.argv", ["bitexp", "-m", *words])
    said = command_line()
    assert "s3cr3t" not in said
    assert said.endswith(
        "-m 'hydra.sweeper.storage=postgresql://me:***@host/db' task.url=https://host:80/a seed=0"
    )


# wrong commands

WRONG = [
    (["optimizer.lr=interval(0.1,0.2)", "hydra.sweeper.n_trial=3"], "unknown key 'hydra.sweeper.n_trial'"),
    ([LR, "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0"),
    ([LR, "hydra.sweeper.n_trials=x"], "hydra.sweeper.n_trials=x"),
    ([LR, "hydra.sweeper.n_trials=null"], "needs a sampler that tries each point once"),
    ([LR, "hydra.sweeper.sampler.name=Rndom"], "Did you mean 'RandomSampler'?"),
    (
        [LR, "+hydra.sweeper.sampler.sede=1"],
        "sampler.sede is not an argument of RandomSampler. Did you mean 'seed'?",
    ),
    ([LR, "hydra.sweeper.sampler.name=GridSampler"], "a grid needs values to choose from"),
    ([LR, "hydra.sweeper.pruner={name: Median}"], "Did you mean 'MedianPruner'?"),
    ([LR, "hydra.sweeper.objectives=[val/acuracy]"], "Did you mean 'val/accuracy'?"),
    ([LR, "hydra.sweeper.objectives=[test/accuracy]"], "The test set cannot be an objective"),
    ([LR, "hydra.sweeper.objectives=[]"], "hydra.sweeper.objectives"),
    ([LR, "hydra.sweeper.directions=[min]"], "hydra.sweeper.directions"),
    ([LR, "hydra.sweeper.directions=[minimize,maximize]"], "directions needs one entry for each"),
    (
        [LR, "hydra.sweeper.objectives=[headline,val/loss]", "hydra.sweeper.pruner={name: MedianPruner}"],
        "a study of several objectives cannot prune",
    ),
    (
        [LR, "hydra.sweeper.objectives=[size/total_bytes]", "hydra.sweeper.pruner={name: MedianPruner}"],
        "is known at the end only",
    ),
    ([LR, "hydra.sweeper.per=[quantizer]"], "hydra.sweeper.per names quantizer, which is not swept"),
    (["quantizer=full,binary", "hydra.sweeper.per=[quantizer]"], "nothing to search"),
    (["seed=0"], "nothing to search"),
    (["optimizer.lx=1,2"], "unknown key 'optimizer.lx'. Did you mean 'optimizer.lr'?"),
    (["quantizer=full,binery"], "unknown quantizer 'binery'. Did you mean 'binary'?"),
    (["optimizer.lr=tag(lgo, interval(1,2))"], "tag lgo is unknown. Known: log"),
    (["optimizer.lr=interval(2,1)"], "optimizer.lr: "),
    ([LR, "hydra.sweeper.storage=mysql://a/b"], "storage=mysql://... is unknown"),
    ([LR, "hydra.sweeper.study='a b'"], "hydra.sweeper.study"),
    ([LR, "hydra.sweeper.heartbeat=300"], "must be less than lost_after=300"),
    (["seed=0,1", "hydra.sweeper.write_tuned=true"], "write_tuned=true needs a sweep over optimizer.lr"),
    (
        [LR, "hydra.sweeper.objectives=[headline,val/loss]", "hydra.sweeper.write_tuned=true"],
        "write_tuned=true needs one objective",
    ),
    (["trainer.epochs=-1,0"], "trainer.epochs=-1"),
    (
        [LR, "hydra/launcher=process", "hydra.launcher.n_jobs=2", "hydra.launcher.gpus=[0]"],
        "more than hydra.l",
    ),
    ([LR, "hydra/launcher=process", "hydra.launcher.n_job=2"], "unknown key 'hydra.launcher.n_job'"),
    (
        [LR, "hydra/launcher=process", "hydra.launcher.timeout_minutes=-1"],
        "hydra.launcher.timeout_minutes=-1",
    ),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_command_is_told_in_words_before_anything_is_made(
    words: list[str], message: str, sweep: Any, outputs: Path
) -> None:
    ended = sweep(*words)
    assert ended.code == 2, ended.out + ended.err
    assert message in ended.err, ended.err
    assert "Traceback" not in ended.err
    assert not list(outputs.glob("*/*"))


def test_a_name_that_was_given_to_another_study_is_refused(sweep: Any, studies: Any) -> None:
    assert sweep(LR, "hydra.sweeper.study=mine", "hydra.sweeper.n_trials=1").code == 0
    ended = sweep("seed=0,1,2", "hydra.sweeper.study=mine", "hydra.sweeper.n_trials=1")
    assert ended.code == 2
    assert "the study 'mine' was started with a different definition (space: " in ended.err
    assert len(studies()) == 1
