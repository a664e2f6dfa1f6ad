"""One process decides, the others follow: what a run of several processes has to agree on before it starts.

Lightning starts the other processes of one machine with the same command line; they find the decision in
their environment. Where a launcher (torchrun, Slurm) starts all of them, they read it from the run's folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitexp.common.errors import UserError
from bitexp.common.files import read_json, write_json

FOLLOW = "BITEXP_FOLLOW"
PATIENCE = 600.0  # seconds a process waits for the first one's decision


def global_rank() -> int:
    """This process's rank before any process group exists, from what launchers set."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if name == "SLURM_PROCID" and os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
            continue
        if name in os.environ:
            return int(os.environ[name])
    return 0


@contextlib.contextmanager
def own_environment() -> Iterator[None]:
    """Takes back what Lightning's launch leaves in the environment of the process that launched.

    The next run of a multirun would take itself for a part of that launch, and wait for the others.
    """
    names = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", FOLLOW)
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def launch_key() -> str | None:
    """What all processes of one launch share, and no other launch has; None when Lightning launches."""
    names = (
        "TORCHELASTIC_RUN_ID",
        "TORCHELASTIC_RESTART_COUNT",
        "SLURM_JOB_ID",
        "SLURM_STEP_ID",
        "MASTER_PORT",
    )
    values = [os.environ.get(name, "") for name in names]
    return "/".join(values) if any(values) else None


def announce(folder: Path, checkpoint: Path | None, pruned_by: str | None = None) -> None:
    """Tells the other processes which folder and checkpoint this run goes on with, and what prunes it."""
    decision = {
        "folder": str(folder),
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "pruned_by": pruned_by,
    }
    os.environ[FOLLOW] = json.dumps(decision)
    if (key := launch_key()) is not None:
        write_json(folder / "launch.json", {**decision, "key": key})


def inherited() -> dict[str, Any] | None:
    """The decision in the environment of a process that Lightning started, or None."""
    if global_rank() == 0 or FOLLOW not in os.environ:
        return None
    return dict(json.loads(os.environ[FOLLOW]))


def wait_for_decision(folder: Path) -> dict[str, Any] | None:
    """The first process's decision for a run that a launcher started; None when the run is finished."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        decision = read_json(folder / "launch.json")
        if isinstance(decision, dict) and decision.get("key") == launch_key():
            return decision
        result = read_json(folder / "result.json")
        if isinstance(result, dict) and result.get("status") == "finished":
            return None
        time.sleep(0.2)
    raise UserError(f"waited {PATIENCE:.0f} s in vain for the first process to decide about {folder}")
