"""What lies around a run decides nothing: files of the current folder, variables of libraries."""

from __future__ import annotations

import os
import shutil
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
from lightning_fabric.plugins.environments import SLURMEnvironment as LightningSlurm

from bitexp.common.logs import quiet_libraries
from bitexp.track.checkpoint_files import LAST
from tests.support.configs import SMALL
from tests.support.faults import at

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
LIGHTNING = {"PL_TRAINER_FAST_DEV_RUN": "1", "PL_TRAINER_MAX_STEPS": "3"}


@pytest.fixture
def around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Any) -> Path:
    """The packed file of an undisturbed run; from here on under Slurm beside the weights of another."""
    with monkeypatch.context() as patch:
        patch.setenv("BITEXP_OUTPUTS", str(tmp_path / "before"))
        expected = train("quantizer=full").folder / "packed.safetensors"
        other = train("quantizer=ternary_mean", "seed=1").folder
    here = tmp_path / "here"
    here.mkdir()
    shutil.copy(other / "checkpoints" / LAST, here / "hpc_ckpt_1.ckpt")
    monkeypatch.chdir(here)
    for name, value in {**SLURM, **LIGHTNING}.items():
        monkeypatch.setenv(name, value)
    return Path(expected)


def test_a_foreign_checkpoint_in_the_current_folder_is_not_read(around: Path, train: Any) -> None:
    outcome = train("quantizer=full")
    assert outcome.status == "finished"
    assert (outcome.folder / "packed.safetensors").read_bytes() == around.read_bytes()


def test_a_login_node_of_a_cluster_is_no_news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (srun := tmp_path / "srun").touch(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert shutil.which("srun") == str(srun)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet_libraries(1)
        LightningSlurm.detect()


@pytest.mark.parametrize("answer", ["exit 0", "echo 'Invalid job id' >&2; exit 1"])
def test_slurm_is_asked_to_go_on(
    answer: str, command: Any, tmp_path: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f"#!/bin/sh\necho $* > {tmp_path}/asked\n{answer}\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    words = (*SMALL, "quantizer=full", "callbacks.checkpoint.requeue=true")
    ended = command(*words, first=at("on_train_batch_start", 3, signal.SIGUSR1))
    assert ended.code == 128 + signal.SIGUSR1, ended.err
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert ("asked to start job 77 again, which" in ended.out) == (answer == "exit 0")
    assert ("again: Invalid job id" in ended.out) == (answer != "exit 0")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    command(*words, first=at("on_train_batch_start", 1, signal.SIGUSR1))
    assert (tmp_path / "asked").read_text() == "requeue 70_3\n"
    (tmp_path / "asked").unlink()
    ended = command(*words)
    assert ended.code == 0, ended.err
    assert not (tmp_path / "asked").exists()


def test_nor_when_slurm_warns_of_its_time_limit(around: Path, command: Any, train: Any) -> None:
    ended = command(*SMALL, "quantizer=full", first=at("on_train_batch_start", 3, signal.SIGUSR1))
    assert ended.code == 128 + signal.SIGUSR1, ended.err
    assert "Stopped by SIGUSR1 after a checkpoint" in ended.out
    assert [path.name for path in Path().iterdir()] == ["hpc_ckpt_1.ckpt"]
    outcome = train("quantizer=full")
    assert (outcome.folder / "packed.safetensors").read_bytes() == around.read_bytes()
