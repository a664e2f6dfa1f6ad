"""`hydra/sweeper=optuna` as a user gives it: real runs, small ones."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.trial import TrialState

from bitexp.sweep.tuned import further_choices
from tests.support.marks import others_slow

OPTUNA = ("hydra/sweeper=optuna", "hydra.sweeper.sampler.name=RandomSampler")
LR = "optimizer.lr=tag(log, interval(0.001, 0.1))"
EVERY_STEP = "callbacks.checkpoint.every_steps=1"


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


@pytest.mark.slow
def test_several_objectives_end_in_a_front(sweep: Any, studies: Any) -> None:
    words = ("hydra.sweeper.objectives=[headline,size/total_bytes]", "model.hidden=[8],[64]", "seed=0")
    ended = sweep("hydra.sweeper.sampler.name=BruteForceSampler", "hydra.sweeper.n_trials=null", *words)
    assert ended.code == 0, ended.err
    assert "maximize val/accuracy and minimize size/total_bytes" in ended.out
    assert "The Pareto front: no other trial is better" in ended.out
    for trial in studies():
        metrics = result_of(trial)["metrics"]
        assert trial.values == [metrics["val/accuracy"], metrics["size/total_bytes"]]


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
    comment, old, full, line = file.read_text().splitlines()
    assert (comment, old, full) == ("# measured", "ternary_mean: {lr: 0.5}", "full: {lr: 0.25}")
    ((name, setting),) = yaml.safe_load(line).items()
    assert name.split() == ["ternary_mean", *further_choices(small)]
    assert "trainer.epochs=2" in name  # with which it was found
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


@pytest.mark.parametrize(
    ("words", "message"), others_slow(WRONG, WRONG[::3]), ids=[message for _, message in WRONG]
)
def test_a_wrong_command_is_told_in_words_before_anything_is_made(
    words: list[str], message: str, sweep: Any, outputs: Path
) -> None:
    ended = sweep(*words)
    assert ended.code == 2, ended.out + ended.err
    assert message in ended.err, ended.err
    assert "Traceback" not in ended.err
    assert not list(outputs.glob("*/*"))


@pytest.mark.slow
def test_a_name_that_was_given_to_another_study_is_refused(sweep: Any, studies: Any) -> None:
    assert sweep(LR, "hydra.sweeper.study=mine", "hydra.sweeper.n_trials=1").code == 0
    ended = sweep("seed=0,1,2", "hydra.sweeper.study=mine", "hydra.sweeper.n_trials=1")
    assert ended.code == 2
    assert "the study 'mine' was started with a different definition (space: " in ended.err
    assert len(studies()) == 1
