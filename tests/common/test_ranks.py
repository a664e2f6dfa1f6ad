"""Several processes: one decides, the others follow, and together they make one run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bitexp.common import ranks
from bitexp.common.errors import UserError
from bitexp.data import load_data
from bitexp.models import build_model
from bitexp.track.checkpoint_files import LAST, load_checkpoint
from tests.support.processes import Start

ROOT = Path(__file__).parents[2]
TWO = ("trainer=ddp", "data.batch_size=32", "quantizer=full")
ONE = ("data.batch_size=64", "quantizer=full")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_JOB_NAME", "SLURM_JOB_ID", "SLURM_STEP_ID")
    for name in (*names, "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, 0),
        ({"LOCAL_RANK": "1"}, 1),
        ({"RANK": "5", "LOCAL_RANK": "1"}, 5),
        ({"SLURM_PROCID": "3"}, 3),
        ({"SLURM_PROCID": "3", "SLURM_JOB_NAME": "interactive"}, 0),
    ],
)
def test_the_rank_is_known_from_the_launcher(
    environment: dict[str, str], rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ranks.global_rank() == rank


def test_what_a_launch_leaves_in_the_environment_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "1")
    before = dict(os.environ)
    with ranks.own_environment():
        os.environ |= {"LOCAL_RANK": "0", "MASTER_PORT": "2", "WORLD_SIZE": "2"}
    assert dict(os.environ) == before


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run's folder, beside which its processes meet."""
    (tmp_path / ".locks").mkdir()
    return tmp_path / "run"


def follower(folder: Path, rank: int) -> Callable[[], None]:
    """Another process of a launch with the same id and port as every other, which notes what it is told."""

    def work() -> None:
        os.environ |= {"RANK": str(rank), "TORCHELASTIC_RUN_ID": "none", "MASTER_PORT": "29511"}
        decision = ranks.wait_for_decision(folder, lambda: False)
        assert decision is not None
        sys.stdout.write(str(decision["checkpoint"]))

    return work


def slowly(work: Callable[[], None]) -> Callable[[], None]:
    """The same after a while."""

    def wait_and_work() -> None:
        time.sleep(0.3)
        work()

    return wait_and_work


def announce(folder: Path, checkpoint: Path | None, followers: int = 0) -> None:
    with ranks.own_environment():
        ranks.announce(folder, checkpoint, followers=followers)


@pytest.mark.parametrize("early", [True, False])
def test_each_launch_has_its_own_decision(
    early: bool, run_folder: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    for checkpoint in (None, run_folder / LAST, run_folder / "previous.ckpt"):
        others = [start(follower(run_folder, rank)) for rank in (1, 2)] if early else []
        if early:
            time.sleep(0.3)
        else:
            killed = start(follower(run_folder, 1))
            while not ranks.question_files(run_folder):
                time.sleep(0.01)
            os.kill(killed.pid, signal.SIGKILL)
            killed.wait()
            others = [start(slowly(follower(run_folder, rank))) for rank in (1, 2)]
        announce(run_folder, checkpoint, followers=2)
        assert [other.wait().out for other in others] == [str(checkpoint)] * 2


def test_nobody_waits_for_ever_or_where_all_is_done(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "PATIENCE", 0.1)
    announce(run_folder, None, followers=1)  # Lightning will start the other one
    monkeypatch.setenv("RANK", "0")
    announce(run_folder, None)
    with pytest.raises(UserError, match="in vain for 1 more processes"):
        announce(run_folder, None, followers=1)
    with pytest.raises(UserError, match="in vain for the first process"):
        ranks.wait_for_decision(run_folder, lambda: False)
    assert ranks.wait_for_decision(run_folder, lambda: True) is None
    assert not list((run_folder.parent / ".locks").iterdir())


def bitexp(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bitexp", *words],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
def test_two_processes_train_what_one_would_with_the_whole_batch(
    outputs: Path, small: Any, train: Any
) -> None:
    out, err = (process := bitexp("-m", *small, *TWO, "seed=0,1")).communicate()
    assert process.returncode == 0, err
    assert err == ""
    assert "2 jobs: 2 trained" in out
    folders = [path.parent for path in outputs.glob("*/*/config.yaml")]
    assert len(folders) == 2
    for folder in folders:
        result = json.loads((folder / "result.json").read_text())
        assert (result["status"], result["steps"]) == ("finished", 8)
        assert result["metrics"]["test/loss"] == result["metrics"]["test_packed/loss"]
        assert len(json.loads((folder / "provenance.json").read_text())["attempts"]) == 1
        alone = train(*ONE, f"seed={result['seed']}")
        together = load_checkpoint(folder / "checkpoints" / LAST)["state_dict"]
        for name, weight in load_checkpoint(alone.folder / "checkpoints" / LAST)["state_dict"].items():
            torch.testing.assert_close(together[name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", ["full", "ternary_mean"])
def test_a_convolutional_network_of_two_processes_is_deployed_to_the_bit(
    quantizer: str, outputs: Path, tiny: Any
) -> None:
    """Batch norm is each process's own, which the header says; what is validated and kept is the first's."""
    out, err = (process := bitexp(*tiny, "model=cnn", *TWO[:2], f"quantizer={quantizer}")).communicate()
    assert (process.returncode, err) == (0, "")
    assert out.count("from the packed file: exactly the same") == 2
    assert "2 x cpu (batch norm over the part of the batch that each has), 1 thread" in out
    (folder,) = (path.parent for path in outputs.glob("*/*/result.json"))
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    if quantizer == "full":
        data = load_data("digits")
        model = build_model("cnn", shape=data.shape, classes=data.classes).eval()
        state = load_checkpoint(folder / "checkpoints" / LAST)["state_dict"]
        model.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
        ((images, labels),) = data.val_dataloader()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        assert metrics["val/loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", ["full", "lsq"])
def test_two_processes_stop_together_and_continue_to_the_bit(
    quantizer: str, outputs: Path, small: Any
) -> None:
    words = (*small, *TWO, f"quantizer={quantizer}", "trainer.epochs=30")
    (process := bitexp(*words, "name=undisturbed")).communicate()
    assert process.returncode == 0
    process = bitexp(*words, "name=stopped", "callbacks.checkpoint.every_steps=1")
    while not list(outputs.glob("stopped/*/checkpoints/previous.ckpt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 143, err
    assert "Stopped by SIGTERM after a checkpoint" in out
    assert "Traceback" not in err
    out, err = (process := bitexp(*words, "name=stopped")).communicate()
    assert process.returncode == 0, err
    assert "resumes    from last.ckpt" in out
    (whole,), (parts,) = (
        list(outputs.glob(f"{name}/*/packed.safetensors")) for name in ("undisturbed", "stopped")
    )
    assert whole.read_bytes() == parts.read_bytes()


@pytest.mark.slow
def test_two_processes_fail_together_and_the_next_job_runs(outputs: Path, small: Any) -> None:
    out, err = (process := bitexp("-m", *small, *TWO, "optimizer.lr=1e30,0.01")).communicate()
    assert process.returncode == 1, err
    assert "2 jobs: 1 trained" in out
    assert "the training loss is nan" in out
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_killed_launch_and_the_next_on_the_same_port_agree(outputs: Path, small: Any) -> None:
    words = ("--nproc_per_node=2", "--master-port=29511", "-m", "bitexp", *small, *TWO, "trainer.epochs=40")
    every = "callbacks.checkpoint.every_steps=1"
    launch = [sys.executable, "-m", "torch.distributed.run", *words, every]
    process = subprocess.Popen(launch, cwd=ROOT, start_new_session=True)
    while not list(outputs.glob("*/*/checkpoints/previous.ckpt")):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for _ in range(2):  # to its end, and once more when it is over
        done = subprocess.run(launch, cwd=ROOT, text=True, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr
    (whole,) = (json.loads(path.read_text()) for path in outputs.glob("*/*/result.json"))
    assert (whole["status"], whole["steps"]) == ("finished", 160)
