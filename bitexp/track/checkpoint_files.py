"""The files of checkpoints: their names, damage found before use, the newest whole one."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitexp.common.errors import Damaged, first_line, is_of_the_machine
from bitexp.common.files import write_atomic

LAST, PREVIOUS, BEST, DAMAGED = "last.ckpt", "previous.ckpt", "best.ckpt", "damaged.ckpt"
NEW = ".new.ckpt"
STATE = "Checkpoints"
"""Under this key of its callbacks a checkpoint of bitexp keeps our state."""


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, or None. Checks length, every record's CRC and content.

    Raises:
        OSError, MemoryError: it could not be read, whatever is in it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (record := archive.testzip()) is not None:
                return f"its record {record} is corrupt"
            if any(
                info.external_attr for info in archive.infolist()
            ):  # torch takes one that has some for empty
                return "its list of records is corrupt"
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        return "it is missing"
    except Exception as error:  # a damaged or hostile file may raise nearly anything
        if is_of_the_machine(error):
            raise
        return f"it cannot be read ({first_line(error)})"
    state = content.get("callbacks", {}) if isinstance(content, dict) else {}
    return None if STATE in state else "it is not a checkpoint of bitexp"


def latest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run, and remarks about a damaged one, which is renamed.

    Raises:
        Damaged: there are checkpoints, and all of them are damaged: never a silent restart.
    """
    remarks: list[str] = []
    for path in (folder / LAST, folder / PREVIOUS, folder / BEST):
        if not path.exists():
            continue
        if (reason := damage(path)) is None:
            if (
                remarks and (folder / LAST).exists()
            ):  # it would become the previous one, and push a good one out
                os.replace(folder / LAST, folder / DAMAGED)
            return path, remarks
        remarks.append(f"{path.name} is damaged: {reason}")
    if remarks:
        raise Damaged(
            f"{folder} has no usable checkpoint: {'; '.join(remarks)}. Nothing was changed. "
            "Use rerun=true to start this run over; the old folder is kept"
        )
    return None, []


def best_checkpoint(folder: Path, checkpoint: Path) -> list[str]:
    """Makes sure of the best checkpoint that a whole one counts on; remarks where it was made again.

    A best checkpoint that is newer than the other is what a run leaves that is killed between the two.

    Raises:
        Damaged: it is not there, or not the one that was written, and no other has its weights.
    """
    state = state_of(checkpoint)
    if state["best"] is None or (reason := other_than(folder / BEST, checkpoint, state)) is None:
        return []
    for path in (folder / LAST, folder / PREVIOUS):
        if path.exists() and damage(path) is None and step_of(path) == state["best_step"]:
            write_atomic(folder / BEST, path.read_bytes())
            return [f"{BEST} was made again from {path.name}: {reason}"]
    raise Damaged(
        f"{folder / BEST} cannot be used: {reason}. It holds the weights that would be tested, of step "
        f"{state['best_step']}. Use rerun=true to start this run over; the old folder is kept"
    )


def other_than(best: Path, checkpoint: Path, state: dict[str, Any]) -> str | None:
    """What is wrong with the best checkpoint, for the state of another of its run; None if nothing."""
    if (reason := damage(best)) is not None:
        return reason
    found, step = state_of(best), step_of(best)
    if found.get("run") not in (None, state.get("run")):
        return f"it is of another run ({found.get('run')})"
    if step <= step_of(checkpoint) and f"{step} {found['best']}" != f"{state['best_step']} {state['best']}":
        return f"it is of step {step} with {found['best']}"
    return None


def surplus(folder: Path, keep: str) -> list[Path]:
    """The checkpoints of a finished run that go when all, its best one or none of them are to be kept.

    The best is the one that holds the tested weights: the best validation's where one is monitored, else the
    last. Further training goes on from it as from any other.
    """
    if keep == "all":
        return []
    tested = BEST if (folder / BEST).exists() else LAST
    return [path for path in sorted(folder.glob("*.ckpt")) if keep == "none" or path.name != tested]


def state_of(path: Path) -> dict[str, Any]:
    """Our own state in a whole checkpoint."""
    return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["callbacks"][STATE])


def step_of(path: Path) -> int:
    """The step after which a whole checkpoint was saved."""
    return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def packed(content: bytes) -> Tensor:
    """Bytes as a checkpoint keeps them."""
    return torch.frombuffer(bytearray(zlib.compress(content, 1)), dtype=torch.uint8)


def unpacked(value: Tensor) -> bytes:
    """Back from `packed`."""
    return zlib.decompress(value.numpy().tobytes())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, tensors and plain values only (nothing in it can execute)."""
    return torch.load(path, map_location="cpu", weights_only=True)
