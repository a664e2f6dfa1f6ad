"""`hydra/launcher=slurm` with programs that stand for Slurm's; tests/sweep/test_slurm.py has a real one."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("submitit")
GRID = ("-m", "seed=0,1", "hydra/launcher=slurm", "hydra.launcher.partition=main")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts programs of Slurm's in place; `sbatch` keeps the script that it is given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def put(**lines: str) -> Path:
        for name, line in lines.items():
            (folder / name).write_text(f"#!/bin/sh\n{line}\n")
            (folder / name).chmod(0o755)
        return folder

    script = tmp_path / "script"
    put(srun="exit 1", sbatch=f"cat $1 > {script}; echo Submitted batch job 17", squeue="true")
    put.script = script  # type: ignore[attr-defined]
    return put


def hasty() -> None:
    """Looks often at what has ended."""
    from bitexp.cli.app import PLUGINS

    sys.path.append(PLUGINS)
    import hydra_plugins.bitexp.slurm_launcher as launcher

    launcher.POLL = 0.01


def test_options_reach_the_batch_script_and_nothing_is_waited_for(
    command: Any, small: Any, stand_in: Any, outputs: Path
) -> None:
    words = (
        "hydra.launcher.wait=false",
        "hydra.launcher.array_parallelism=1",
        "hydra.launcher.setup=[module x]",
    )
    words += ("hydra.launcher.signal_delay_s=45", "+hydra.launcher.additional_parameters.mail-type=FAIL")
    ended = command(*GRID, *small, *words)
    assert ended.code == 0, ended.err
    (index,) = outputs.glob("*/sweeps/*")
    assert "In Slurm's queue as 17: 2 jobs, writing to " in ended.out
    assert f"report {index} --watch follows them; scancel 17 ends them" in ended.out
    assert "jobs: " not in ended.out
    script = stand_in.script.read_text().splitlines()
    for line in ("array=0-1%1", "partition=main", "signal=USR2@45", "time=60", "mail-type=FAIL"):
        assert f"#SBATCH --{line}" in script
    assert script.index("module x") < script.index("export SUBMITIT_EXECUTOR=slurm")
    assert not any("account" in line or "qos" in line for line in script)


def test_a_job_that_is_gone_without_a_result_is_recorded(
    command: Any, small: Any, stand_in: Any, outputs: Path
) -> None:
    log = "dirname $1 | xargs -I% sh -c 'echo Killed by the kernel > %/17_0_0_log.err'"
    stand_in(sbatch=f"{log}; echo Submitted batch job 17")
    ended = command(*GRID, *small, first=hasty)
    assert ended.code == 1, ended.err
    (first, second) = sorted(outputs.glob("*/sweeps/*/jobs/*.json"))
    record = json.loads(first.read_text())
    assert (record["status"], record["kind"]) == ("failed", "died")
    assert record["overrides"][0] == "seed=0"
    assert record["reason"].startswith("Slurm's job 17_0 is gone and left no result")
    assert record["reason"].endswith("17_0_0_log.err: Killed by the kernel")
    assert json.loads(second.read_text())["reason"].endswith("17_1_0_log.err")
    assert "2 jobs: 0 trained, 0 finished before, 2 not finished" in ended.out


@pytest.mark.parametrize(
    ("programs", "said"),
    [
        (
            {"sbatch": "echo 'sbatch: error: invalid partition specified: main' >&2; exit 1"},
            "Slurm did not take the jobs: error: invalid partition specified: main",
        ),
        ({"sbatch": "echo no idea"}, "Slurm did not take the jobs: "),
    ],
)
def test_what_slurm_does_not_take_is_bad_input(
    programs: dict[str, str], said: str, command: Any, small: Any, stand_in: Any
) -> None:
    stand_in(**programs)
    ended = command(*GRID, *small)
    assert ended.code == 2, ended.out + ended.err
    assert said in ended.err
    assert "Traceback" not in ended.err


def test_without_slurm_it_says_so(command: Any, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    ended = command(*GRID, *small)
    assert ended.code == 2, ended.out + ended.err
    assert "are you indeed on a slurm cluster?" in ended.err


def test_a_study_cannot_be_left(sweep: Any, stand_in: Any) -> None:
    ended = sweep("optimizer.lr=0.1,0.2", "hydra/launcher=slurm", "hydra.launcher.wait=false")
    assert ended.code == 2, ended.out + ended.err
    assert "hydra.launcher.wait=false goes with a grid" in ended.err
