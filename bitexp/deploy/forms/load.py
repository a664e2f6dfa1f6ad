"""Networks from the other forms: the stack of a run up to a size, a run with a delta on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from bitexp.common.errors import UserError
from bitexp.deploy.forms.delta import applied, read_delta
from bitexp.deploy.forms.file import full_precision
from bitexp.deploy.forms.stack import read_stack
from bitexp.deploy.packed_file import unpack
from bitexp.kernels import Kernel
from bitexp.track.folder import RunFolder

STACK, DELTA = "stacked.safetensors", "delta.safetensors"
"""The names of these files in a run's folder."""


def packed_path(run: Path) -> Path:
    """The packed file of a run, or one that is named itself."""
    return run if run.suffix == ".safetensors" else RunFolder(run).packed


def stack_path(run: Path) -> Path:
    """The stack of a run, or one that is named itself.

    Raises:
        UserError: there is none yet.
    """
    path = run if run.suffix == ".safetensors" else run / STACK
    if not path.exists():
        raise UserError(f"there is no {path}: python -m bitexp stack {run} makes it")
    return path


def load_stack(run: Path, limit: int | None, kernel: Kernel) -> tuple[nn.Module, dict[str, Any]]:
    """The network of as many first blocks of a stack as fit into so many bytes, as `load_run` gives it.

    Raises:
        UserError: there is no stack, it is damaged, or nothing of it fits.
    """
    path = stack_path(run)
    return unpack(path, read_stack(path).prefix(limit)[0], kernel)


def load_with_delta(base: Path, delta: Path, kernel: Kernel) -> tuple[nn.Module, dict[str, Any]]:
    """The network that a delta makes of a run in full precision, as `load_run` gives it.

    Raises:
        UserError: one of them is missing or damaged, or they do not belong together.
    """
    return unpack(delta, applied(full_precision(packed_path(base)), read_delta(delta), delta), kernel)
