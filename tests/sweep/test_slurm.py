"""Grids and studies on a real Slurm: submitted, left, stopped by the time limit and queued again, killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import slurm as helper

ROOT = Path(__file__).parents[2]
LIMITS = ("hydra.launcher.timeout_min=10", "hydra.launcher.cpus_per_task=1")
ENDLESS = ("trainer.epochs=1000000", "trainer.validate_every=1000")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[helper.Slurm]:
    """A running Slurm, or no test."""
    if missing := helper.missing():
        pytest.skip(f"no Slurm here (Debian: slurm-wlm, munge): {', '.join(missing)} not found")
    with helper.serving() as slurm:
        yield slurm


@pytest.fixture(autouse=True)
def slurm(cluster: helper.Slurm, monkeypatch: pytest.MonkeyPatch) -> helper.Slurm:
    """The same, for the commands of a test."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return cluster


def bitexp(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bitexp", *words]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and all that a command has said."""
    out, err = process.communicate(timeout=280)
    return process.returncode, out + err


def goes_on(process: subprocess.Popen[str]) -> bool:
    """True, or a failure that shows what a command has said before it ended."""
    assert process.poll() is None, ended(process)
    return True


def statuses(outputs: Path) -> list[str]:
    """How the jobs of the only multirun ended, in their order."""
    paths = sorted(outputs.glob("*/*/*/jobs/*.json"), key=lambda path: int(path.stem))
    return [json.loads(path.read_text())["status"] for path in paths]


def log(outputs: Path) -> str:
    """What the only run has said so far."""
    return "".join(path.read_text() for path in outputs.glob("*/*/train.log"))


@pytest.mark.parametrize("launcher", ["slurm", "submitit_slurm"])
def test_a_grid(launcher: str, small: Any, outputs: Path) -> None:
    words = ("seed=0,1", "optimizer.lr=0.01,1e30", f"hydra/launcher={launcher}", *LIMITS)
    words += ("hydra.launcher.partition=main", "hydra.launcher.array_parallelism=2")
    code, said = ended(bitexp("-m", *small, *words, "hydra.launcher.signal_delay_s=45"))
    assert code == (1 if launcher == "slurm" else 0), said
    assert statuses(outputs) == ["finished", "failed"] * 2
    assert "4 jobs: 2 trained, 0 finished before, 2 not finished" in said
    assert "seed=0, optimizer.lr=1e+30; seed=1, optimizer.lr=1e+30: the training loss is nan" in said
    (script,) = (path for path in outputs.rglob("*submission.sh") if not path.is_symlink())
    for line in ("array=0-3%2", "partition=main", "signal=USR2@45", "time=10"):
        assert f"#SBATCH --{line}\n" in script.read_text()
    if launcher == "slurm":
        assert "sacct" not in said


def test_a_study(small: Any, outputs: Path, load: Any) -> None:
    words = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_workers=2")
    words += ("optimizer.lr=tag(log, interval(1e-4, 1e-1))", "hydra/launcher=slurm")
    code, said = ended(bitexp("-m", *small, *words, *LIMITS))
    assert code == 0, said
    assert ": 2 finished; budget 2." in said
    (journal,) = outputs.glob("*/studies/*.journal")
    assert all(trial.value is not None for trial in load(journal))


def test_what_is_submitted_can_be_left_and_followed(small: Any, outputs: Path, until: Any) -> None:
    words = (*small, "seed=0,1", "hydra/launcher=slurm", "hydra.launcher.wait=false", *LIMITS)
    code, said = ended(bitexp("-m", *words))
    assert code == 0, said
    found = re.search(r"python -m bitexp (report \S+ --watch) follows them; scancel \d+ ends them", said)
    assert found, said
    assert "jobs: " not in said
    watching = bitexp(*found[1].split(), "--every", "1")
    try:
        (page,) = (path / "report" / "index.html" for path in outputs.glob("*/sweeps/*"))
        until(lambda: page.exists() and "seed=1" in page.read_text() and len(statuses(outputs)) == 2, 120)
    finally:
        watching.send_signal(signal.SIGINT)
    code, said = ended(watching)
    assert code == 0, said
    assert statuses(outputs) == ["finished", "finished"]
    code, said = ended(bitexp("-m", *words))
    assert code == 0, said
    assert "2 of 2 cells were finished before" in said
    assert "In Slurm's queue" not in said


def test_a_job_over_its_time_limit_is_queued_again_and_continues(
    slurm: helper.Slurm, small: Any, outputs: Path, until: Any
) -> None:
    words = (*(word for word in small if "epochs" not in word), *ENDLESS, "quantizer=full", "seed=0")
    words += ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=2")
    waiting = bitexp("-m", *words, "hydra.launcher.signal_delay_s=30", "hydra.launcher.max_num_timeout=1")
    until(lambda: goes_on(waiting) and "resumes    from last.ckpt" in log(outputs), 250)
    assert "Stopped by SIGUSR2 after a checkpoint" in log(outputs)
    (job,) = slurm.ask("squeue", "--noheader", "--format=%i").split()
    slurm.ask("scancel", "--signal=USR2", job)  # as at the end of its time, of which it has no more
    code, said = ended(waiting)
    assert code == 130, said
    assert statuses(outputs) == ["stopped"]
    assert "SIGUSR2" in said


def test_a_job_that_was_killed_is_missed(slurm: helper.Slurm, small: Any, outputs: Path, until: Any) -> None:
    words = (*(word for word in small if "epochs" not in word), *ENDLESS, "seed=0")
    waiting = bitexp("-m", *words, "hydra/launcher=slurm", *LIMITS)
    until(lambda: goes_on(waiting) and "train " in log(outputs), 120)
    (job,) = slurm.ask("squeue", "--noheader", "--format=%i").split()
    (owner,) = outputs.glob("*/.locks/*.json")
    os.kill(json.loads(owner.read_text())["pid"], signal.SIGKILL)  # as the kernel does where memory is short
    code, said = ended(waiting)
    assert code == 1, said
    assert statuses(outputs) == ["failed"]
    assert f"Slurm's job {job} is gone and left no result" in said


def test_two_tasks_train_one_run(small: Any, outputs: Path) -> None:
    words = (
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "quantizer=ternary_mean",
        "seed=0",
    )
    words += ("hydra/launcher=slurm", "hydra.launcher.tasks_per_node=2", *LIMITS)
    code, said = ended(bitexp("-m", *small, *words))
    assert code == 0, said
    (result,) = outputs.glob("*/*/result.json")
    assert json.loads(result.read_text())["status"] == "finished"
    assert "2 x cpu" in log(outputs)


def test_what_slurm_does_not_take_is_bad_input(small: Any) -> None:
    code, said = ended(
        bitexp("-m", *small, "seed=0,1", "hydra/launcher=slurm", "hydra.launcher.partition=none")
    )
    assert code == 2, said
    assert "Slurm did not take the jobs: error: Batch job submission failed: Invalid partition" in said
    assert "Traceback" not in said
