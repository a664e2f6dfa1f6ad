"""Studies by Hydra's launchers: our own with a program that stands for `python -m bitexp`, and for real."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from bitexp.sweep.ownership import began
from tests.support.marks import others_slow

ROOT = Path(__file__).parents[2]
OPTUNA = ("hydra/sweeper=optuna", "hydra.sweeper.sampler={name: BruteForceSampler, seed: 0}")
PROCESS = ("hydra/launcher=process",)
PROGRAM = """#!{python}
import json, os, signal, sys, time

words = dict(word.partition("=")[::2] for word in sys.argv[1:] if "=" in word)
folder, number, seed = words["hydra.sweep.dir"].strip("'"), int(words["hydra.job.num"]), words["seed"]


def end(status, code, kind=None, reason=None):
    record = {{"overrides": ["seed=" + seed], "status": status, "kind": kind, "reason": reason}}
    record |= {{"run": "/no/such/run", "trained": True, "headline": "test/accuracy"}}
    record |= {{"metrics": {{"val/accuracy": int(seed) / 100, "test/accuracy": 0.5}}}}
    with open(f"{{folder}}/jobs/{{number}}.json", "w") as file:
        json.dump(record, file)
    sys.exit(code)


if seed == "70":  # it does not stop when it is asked to
    signal.signal(signal.SIGINT, signal.SIG_IGN)
else:
    signal.signal(signal.SIGINT, lambda *_: end("stopped", 130, "signal", "SIGINT"))
with open(f"{note}/{{number}}-{{os.getpid()}}.tmp", "w") as file:
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    inherited = {{name: value for name, value in os.environ.items() if name.startswith("BITEXP")}}
    note = {{"words": sys.argv[1:], "pid": os.getpid(), "seed": seed, "gpus": gpus, "inherited": inherited}}
    json.dump(note, file)
os.rename(file.name, file.name.removesuffix(".tmp") + ".json")
print("a job of seed", seed)
if seed == "13":
    os.kill(os.getpid(), signal.SIGSEGV)
if seed in ("60", "70"):
    time.sleep(120)
if seed == "14":
    end("failed", 1, "diverged", "the training loss is nan")
end("finished", 0)
"""


@pytest.fixture
def notes(tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    """What jobs have noted when they began."""
    (tmp_path / "notes").mkdir()
    return lambda: [json.loads(path.read_text()) for path in sorted((tmp_path / "notes").glob("*.json"))]


@pytest.fixture
def stand_in(tmp_path: Path, notes: Any) -> Callable[[], None]:
    """Puts the program above in the place of Python, for the jobs of this process."""
    path = tmp_path / "python"
    path.write_text(PROGRAM.format(python=sys.executable, note=tmp_path / "notes"))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return lambda: setattr(sys, "executable", str(path))


@pytest.fixture
def studies(outputs: Path, load: Any) -> Callable[[], Any]:
    """The trials of the only study."""

    def read() -> Any:
        (path,) = outputs.glob("*/studies/*.journal")
        return load(path)

    return read


def records(outputs: Path) -> list[dict[str, Any]]:
    paths = sorted(outputs.glob("*/*/*/jobs/*.json"), key=lambda path: int(path.stem))
    return [json.loads(path.read_text()) for path in paths]


def test_jobs_of_a_plain_multirun_are_processes(
    command: Any, stand_in: Any, notes: Any, outputs: Path
) -> None:
    words = ("-m", *PROCESS, "hydra.launcher.n_jobs=2", "seed=1,13,14,2", "quantizer=full")
    ended = command(*words, first=stand_in)
    assert ended.code == 1, ended.err
    assert sorted(note["seed"] for note in notes()) == ["1", "13", "14", "2"]
    died = records(outputs)[1]
    assert (died["status"], died["kind"]) == ("failed", "died")
    assert died["reason"].startswith("its process was killed by SIGSEGV. ")
    assert died["reason"].endswith("1.log: a job of seed 13")
    assert died["overrides"] == ["seed=13", "quantizer=full"]
    assert [record["status"] for record in records(outputs)] == ["finished", "failed", "failed", "finished"]
    assert "[4/4] " in ended.out
    assert "4 jobs: 2 trained, 0 finished before, 2 not finished" in ended.out
    assert "failed: seed=13, quantizer=full: its process was killed by SIGSEGV" in ended.out


def test_trials_in_processes_have_their_gpus_and_logs(
    command: Any, stand_in: Any, notes: Any, outputs: Path, studies: Any
) -> None:
    words = ("-m", *OPTUNA, *PROCESS, "hydra.launcher.gpus=[3,'1,2']", "hydra.sweeper.n_workers=2")
    words += ("seed=choice(1,13,2,3,4,14)", "hydra.sweeper.n_trials=null", "hydra.sweeper.retries=1")
    ended = command(*words, first=stand_in)
    assert ended.code == 1, ended.err
    assert {note["gpus"] for note in notes()} == {"3", "1,2"}
    assert sorted(note["seed"] for note in notes()) == ["1", "13", "13", "14", "2", "3", "4"]
    trials = {trial.params["seed"]: trial for trial in studies()}
    assert len(studies()) == 6
    assert trials[13].state == trials[14].state == TrialState.FAIL
    assert trials[13].user_attrs["kind"] == "died"
    assert len(trials[13].user_attrs["earlier_failures"]) == 2
    assert trials[14].user_attrs["kind"] == "diverged"
    assert [trials[seed].value for seed in (1, 2, 3, 4)] == [0.01, 0.02, 0.03, 0.04]
    (log,) = outputs.glob(f"*/studies/*/logs/{trials[13].number}.log")
    assert log.read_text() == "a job of seed 13\n" * 2
    assert ": 4 finished, 2 failed; budget 6." in ended.out


def test_a_job_gets_the_words_of_the_sweep_and_nothing_else(
    command: Any, stand_in: Any, notes: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    words = ("--config-dir", str(tmp_path / "mine"), "-m", *OPTUNA, *PROCESS)
    words += ("seed=5,6", "model.hidden=[8,8]", "hydra.sweeper.n_trials=1")
    ended = command(*words, first=stand_in)
    assert ended.code == 0, ended.err
    (note,) = notes()
    typed = note["words"]
    assert typed[:2] == ["-m", "bitexp"]
    assert typed[2:6] == ["--config-name", "config", "--config-dir", str(tmp_path / "mine")]
    task = [word for word in typed[6:] if "hydra" not in word]
    assert task == ["model.hidden=[8,8]", f"seed={note['seed']}"]
    assert "hydra.mode=RUN" in typed
    assert "--multirun" not in typed


@pytest.mark.parametrize("sweeper", [(), OPTUNA])
def test_a_secret_is_inherited_and_no_argument(
    sweeper: tuple[str, ...], command: Any, stand_in: Any, notes: Any, outputs: Path
) -> None:
    secret = "pa55@word"
    words = ("-m", *sweeper, *PROCESS, "seed=5,6", f"+model.uri='http://me:{secret}@host/a b'")
    ended = command(*words, f"+model.api_key={secret}", first=stand_in)
    assert ended.code == 0, ended.err
    for note in notes():
        typed = dict(word.partition("=")[::2] for word in note["words"] if word.startswith("+model"))
        values = [note["inherited"][re.findall("BITEXP_[A-Z_]+", value)[0]] for value in typed.values()]
        assert sorted(values) == [f"http://me:{secret}@host/a b", secret]
        assert secret not in str(note["words"])
    kept = [path for path in outputs.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert not kept
    assert secret not in ended.out + ended.err


@pytest.mark.parametrize("workers", others_slow([0, 1, 2], [2]))
def test_ctrl_c_stops_the_jobs_and_leaves_none(
    workers: int, start: Any, stand_in: Any, notes: Any, until: Any, outputs: Path, load: Any
) -> None:
    """Without a study (0 workers), with one, and with two threads."""
    words = ["-m", *PROCESS, f"hydra.launcher.n_jobs={workers or 2}", "seed=60,61,62,60"]
    if workers:
        words += [*OPTUNA, f"hydra.sweeper.n_workers={workers}", "hydra.sweeper.n_trials=2"]
        words[3] = "seed=choice(60)"
        words.append("optimizer.lr=0.1,0.2")
    child = start(lambda: program(words, stand_in))
    jobs = workers or 1
    until(lambda: len([note for note in notes() if note["seed"] == "60"]) >= jobs)
    os.kill(child.pid, signal.SIGINT)
    ended = child.wait()
    assert ended.code == 130, ended.err
    assert "Traceback" not in ended.err
    assert "Stopping: the jobs under way save a checkpoint; Ctrl-C again kills them." in ended.out
    assert all(began(note["pid"]) is None for note in notes())
    assert {r["status"] for r in records(outputs) if r["overrides"][-1] == "seed=60"} == {"stopped"}
    if workers:
        (journal,) = outputs.glob("*/studies/*.journal")
        trials = load(journal)
        assert [trial.state for trial in trials] == [TrialState.RUNNING] * workers
        assert [trial.user_attrs["owner"] for trial in trials] == [""] * workers


@pytest.mark.parametrize("workers", others_slow([0, 1, 2], [2]))
def test_a_second_ctrl_c_kills_the_jobs(
    workers: int, start: Any, stand_in: Any, notes: Any, until: Any, outputs: Path
) -> None:
    words = ["-m", *PROCESS, "seed=70", "optimizer.lr=0.1,0.2"]
    if workers:
        words += [*OPTUNA, f"hydra.sweeper.n_workers={workers}", f"hydra.launcher.n_jobs={workers}"]
        words.append("hydra.sweeper.n_trials=2")
    child = start(lambda: program(words, stand_in))
    until(lambda: len(notes()) >= max(1, workers))
    os.kill(child.pid, signal.SIGINT)
    until(lambda: "Stopping" in child.files[0].read_text())
    time.sleep(0.2)
    assert all(began(note["pid"]) is not None for note in notes())
    os.kill(child.pid, signal.SIGINT)
    ended = child.wait()
    assert ended.code == 130, ended.err
    assert "Traceback" not in ended.err
    assert all(began(note["pid"]) is None for note in notes())


def program(words: list[str], first: Callable[[], None]) -> None:
    """`python -m bitexp WORDS`, in this process, whose output can be read while it runs."""
    from bitexp.__main__ import main

    first()
    sys.argv = ["bitexp", *words]
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    main()


# for real


def bitexp(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bitexp", *words]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


SWEEP = ("hydra/sweeper=optuna", "hydra.sweeper.sampler.name=RandomSampler", "hydra.sweeper.n_workers=2")
LR = "optimizer.lr=interval(0.01,0.1)"


def drawn_and_found(trials: Any) -> list[Any]:
    return [(trial.number, trial.params, trial.values, trial.state) for trial in trials]


@pytest.fixture
def by_hand(command: Any, small: Any, load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a study gives in one process, with a pruner that never finds a reason."""

    def make(*words: str) -> list[Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BITEXP_OUTPUTS", str(tmp_path / "by-hand"))
            ended = command("-m", *small, *SWEEP, *words)
        assert ended.code == 0, ended.err
        (journal,) = (tmp_path / "by-hand").glob("*/studies/*.journal")
        return drawn_and_found(load(journal))

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ("hydra/launcher=process", "hydra.launcher.n_jobs=2"),
        ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
        ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"),
        ("hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"),
    ],
    ids=["process", "joblib", "submitit_local", "ray"],
)
def test_through_any_launcher_a_study_is_the_same(
    launcher: tuple[str, ...], by_hand: Any, small: Any, studies: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    name = launcher[0].partition("=")[2]
    if name == "ray":
        pytest.importorskip("ray")
        pytest.importorskip("hydra_plugins.hydra_ray_launcher")
        monkeypatch.setenv("HOME", str(tmp_path))  # it writes a token there
    words = (LR, "hydra.sweeper.n_trials=3", "hydra.sweeper.pruner={name: MedianPruner}")
    out, err = (process := bitexp("-m", *small, *SWEEP, *launcher, *words)).communicate(timeout=280)
    assert process.returncode == 0, out + err
    assert ": 3 finished; budget 3." in out
    assert drawn_and_found(studies()) == by_hand(*words)
    assert all(set(trial.intermediate_values) == {500, 1000} for trial in studies())
    out, err = (process := bitexp("-m", *small, *SWEEP, *launcher, *words)).communicate(timeout=280)
    assert (process.returncode, len(studies())) == (0, 3)
    assert "3 of 3 trials done" in out


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["process", "joblib", "submitit_local"])
def test_through_any_launcher_a_failure_is_recorded_and_the_exit_code_says_so(
    launcher: str, small: Any, studies: Any
) -> None:
    words = (
        "optimizer.lr=1e30,0.01",
        "hydra.sweeper.sampler.name=GridSampler",
        "hydra.sweeper.n_trials=null",
    )
    out, err = (process := bitexp("-m", *small, *SWEEP, f"hydra/launcher={launcher}", *words)).communicate(
        timeout=280
    )
    assert process.returncode == 1, out + err
    assert ": 1 finished, 1 failed; budget 2." in out
    assert {trial.state for trial in studies()} == {TrialState.COMPLETE, TrialState.FAIL}
    assert {trial.user_attrs.get("kind") for trial in studies()} == {None, "diverged"}


@pytest.mark.slow
def test_when_the_sweep_is_killed_its_jobs_stop_after_a_checkpoint(
    small: Any, outputs: Path, studies: Any, until: Any
) -> None:
    long = [word for word in small if "epochs" not in word]
    words = ("-m", *long, "trainer.epochs=400", "callbacks.checkpoint.every_steps=1", *SWEEP, LR)
    words += ("hydra/launcher=process", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_trials=2")
    sweep = bitexp(*words)
    until(lambda: len(list(outputs.glob("*/*/checkpoints/previous.ckpt"))) == 2, 200)
    sweep.kill()
    sweep.communicate()
    until(lambda: len(list(outputs.glob("*/*/result.json"))) == 2, 100)
    for path in outputs.glob("*/*/result.json"):
        result = json.loads(path.read_text())
        assert (result["status"], result["reason"]) == ("stopped", "SIGTERM")
    before = drawn_and_found(studies())
    sweep = bitexp(*words)
    logs = list(outputs.glob("*/*/train.log"))
    until(lambda: all("resumes    from " in log.read_text() for log in logs), 200)
    sweep.send_signal(signal.SIGINT)
    out, err = sweep.communicate(timeout=100)
    assert sweep.returncode == 130, out + err
    assert len(re.findall(r"its worker \S+ is gone", out)) == 2
    assert drawn_and_found(studies()) == before
    reasons = [json.loads(path.read_text())["reason"] for path in outputs.glob("*/*/result.json")]
    assert reasons == ["SIGINT"] * 2
