"""The files of checkpoints: their names, damage found before use, the newest whole one."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from bitexp.common.errors import UserError

LAST, PREVIOUS, BEST, DAMAGED = "last.ckpt", "previous.ckpt", "best.ckpt", "damaged.ckpt"
NEW = ".new.ckpt"
STATE = "Checkpoints"
"""Under this key of its callbacks a checkpoint of bitexp keeps our state."""


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, or None. Checks length, every record's CRC and content."""
    try:
        with zipfile.ZipFile(path) as archive:
            if (record := archive.testzip()) is not None:
                return f"its record {record} is corrupt"
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        return "it is missing"
    except Exception as error:  # a damaged or hostile file may raise nearly anything
        return f"it cannot be read ({str(error).strip().splitlines()[0]})"
    state = content.get("callbacks", {}) if isinstance(content, dict) else {}
    return None if STATE in state else "it is not a checkpoint of bitexp"


def latest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run, and remarks about a damaged one, which is renamed.

    Raises:
        UserError: there are checkpoints, and all of them are damaged: never a silent restart.
    """
    remarks: list[str] = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        if (reason := damage(path)) is None:
            if remarks:  # else the next checkpoint would take the place of the good one
                os.replace(folder / LAST, folder / DAMAGED)
            return path, remarks
        remarks.append(f"{path.name} is damaged: {reason}")
    if remarks:
        raise UserError(
            f"{folder} has no usable checkpoint: {'; '.join(remarks)}. Nothing was changed. "
            "Use rerun=true to start this run over; the old folder is kept"
        )
    return None, []


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, tensors and plain values only (nothing in it can execute)."""
    return torch.load(path, map_location="cpu", weights_only=True)
