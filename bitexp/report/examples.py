"""What a network says of each test example: which ones it has right, from the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bitexp.common.files import read_bytes
from bitexp.report.compare import Cell
from bitexp.report.resampling import Discordant, mcnemar
from bitexp.track.folder import RunFolder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LARGEST = 2**26
"""Bytes of a file of predictions; that of a million examples has two million."""


def discordant(ours: Cell, base: Cell) -> list[Discordant]:
    """McNemar's test of each common seed whose runs have kept their predictions of the same test examples."""
    theirs = {run.seed: run.path for run in base.runs}
    pairs = [(right(run.path), right(theirs[run.seed])) for run in ours.runs if run.seed in theirs]
    return [mcnemar(a, b) for a, b in pairs if a is not None and b is not None and a.shape == b.shape]


def right(folder: Path) -> NDArray[np.bool_] | None:
    """Which test examples a run has right, in their order; None where that was not kept, or is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        columns = load(read_bytes(RunFolder(folder).predictions, LARGEST))
        prediction, label = columns["prediction"], columns["label"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
    return prediction == label if prediction.shape == label.shape and prediction.ndim == 1 else None
