"""One process decides, the others follow: what a run of several processes has to agree on before it starts.

Lightning starts the other processes of one machine with the same command line; they find the decision in
their environment. Where a launcher (torchrun, Slurm) starts all of them, they ask beside the run's folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bitexp.common.errors import UserError
from bitexp.common.files import read_json, write_json

FOLLOW = "BITEXP_FOLLOW"
AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
"""Whether processes meet in a store that torchrun keeps as long as it lives."""
PATIENCE = 600.0  # seconds a process waits for the first one's decision


def global_rank() -> int:
    """This process's rank before any process group exists, from what launchers set."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if name in os.environ and (name != "SLURM_PROCID" or in_slurm()):
            return int(os.environ[name])
    return 0


def in_slurm() -> bool:
    """Whether Slurm started this process; in its interactive shells it has not."""
    return "SLURM_PROCID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


@contextlib.contextmanager
def own_environment() -> Iterator[None]:
    """Takes back what Lightning's launch leaves in the environment of the process that launched.

    The next run of a multirun would take itself for a part of that launch, and wait for the others.
    """
    names = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", AGENT_STORE, FOLLOW)
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def meet_again(run: str) -> None:
    """Where these processes of torchrun have met for another run before, gives them a store of their own.

    In the one that torchrun keeps they would find the addresses of the run before. All of them know the id of
    the run, and so the same port.
    """
    if os.environ.get(AGENT_STORE) == "True":
        os.environ[AGENT_STORE] = "False"
        os.environ["MASTER_PORT"] = str(20_000 + zlib.crc32(run.encode()) % 12_000)


def launched() -> bool:
    """Whether somebody else than Lightning starts all processes of this run."""
    return in_slurm() or "RANK" in os.environ or "LOCAL_RANK" in os.environ


def announce(folder: Path, checkpoint: Path | None, pruned_by: str | None = None, followers: int = 0) -> None:
    """Tells the other processes which folder and checkpoint this run goes on with, and what prunes it.

    Where a launcher starts them, the first process clears away what earlier launches have left and waits for
    the question of each: a process repeats its own while it lives, and knows the answer by it. The id of a
    launch or its port would not do, since the next launch may have the same.

    Args:
        followers: how many there are.

    Raises:
        UserError: they do not come.
    """
    decision = {
        "folder": str(folder),
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "pruned_by": pruned_by,
    }
    os.environ[FOLLOW] = json.dumps(decision)
    if not launched() or followers == 0:
        return
    for stale in [answer_file(folder), *question_files(folder)]:
        stale.unlink(missing_ok=True)
    deadline = time.monotonic() + PATIENCE
    while len(questions := [read_json(file) for file in question_files(folder)]) < followers:
        if time.monotonic() > deadline:
            raise UserError(f"waited {PATIENCE:.0f} s in vain for {followers} more processes of this run")
        time.sleep(0.1)
    write_json(answer_file(folder), {**decision, "questions": questions})


def answer_file(folder: Path) -> Path:
    """Where the first process of a launch answers the others."""
    return folder.parent / ".locks" / f"{folder.name}.launch.json"


def question_files(folder: Path) -> list[Path]:
    """Where the others ask, each in a file of its own."""
    return sorted((folder.parent / ".locks").glob(f"{folder.name}.rank*.json"))


def inherited() -> dict[str, Any] | None:
    """The decision in the environment of a process that Lightning started, or None."""
    if global_rank() == 0 or FOLLOW not in os.environ:
        return None
    return dict(json.loads(os.environ[FOLLOW]))


def wait_for_decision(folder: Path, over: Callable[[], bool]) -> dict[str, Any] | None:
    """The first process's decision for a run that a launcher started.

    Args:
        over: whether there is nothing to do, so that the first process decides nothing.

    Returns:
        None when the run is over.

    Raises:
        UserError: the first process does not answer.
    """
    question = uuid.uuid4().hex
    place = answer_file(folder).with_name(f"{folder.name}.rank{global_rank()}.json")
    place.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + PATIENCE
    try:
        while time.monotonic() < deadline:
            if read_json(place) != question:
                write_json(place, question)
            answer = read_json(answer_file(folder))
            if isinstance(answer, dict) and question in answer.get("questions", ()):
                return answer
            if over():
                return None
            time.sleep(0.1)
    finally:
        place.unlink(missing_ok=True)
    raise UserError(f"waited {PATIENCE:.0f} s in vain for the first process to decide about {folder}")
