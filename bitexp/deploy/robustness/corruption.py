"""What a packed model makes of corrupted test images, as metrics by name."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from bitexp.common.errors import UserError
from bitexp.data.base import Data
from bitexp.data.images.corruptions import CORRUPTIONS, STRENGTHS, corrupted
from bitexp.deploy.load import every_run, load_packed
from bitexp.deploy.robustness.later import measure_runs
from bitexp.deploy.score import Samples
from bitexp.track.folder import RunFolder

IMAGES = 2000
"""What is looked at unless more or less is asked for."""


def tell_corruptions(path: Path, samples: int | None = None) -> None:
    """Measures a run, or every finished one in a folder, and prints a table.

    Raises:
        UserError: there is no run, or none of images; or no data.
    """
    count = IMAGES if samples is None else samples
    asked = {"samples": count, "corruptions": CORRUPTIONS.names()}

    def measure(folder: Path, data: Data, tell: Callable[[str], None]) -> dict[str, float]:
        return under_corruptions(RunFolder(folder).packed, Samples.held_out(data, count), tell)

    measure_runs(every_run([path]), "corruptions", asked, measure, rows)


def rows(metrics: Mapping[str, float]) -> list[dict[str, str]]:
    """The accuracy under each, as a line."""
    names = ["clean", "accuracy", *CORRUPTIONS.names()]
    headings = {"clean": "as they are", "accuracy": "corrupted"}
    return [{headings.get(name, name): f"{metrics[f'corrupted/{name}']:.3f}" for name in names}]


def under_corruptions(path: Path, samples: Samples, tell: Callable[[str], None]) -> dict[str, float]:
    """The metrics of a packed file.

    `corrupted/NAME` is the mean accuracy over five strengths, `corrupted/NAME_5` that of the highest,
    `corrupted/accuracy` the mean of all, and `corrupted/clean` the accuracy on the images as they are.

    Args:
        samples: of the test part, as the network gets them. tell: gets a line about each corruption.

    Raises:
        UserError: it is no model of images, or damaged.
    """
    model, preparation = load_packed(path)
    if samples.inputs.dim() != 4:
        raise UserError(f"{path} is no model of images, and there is nothing to corrupt")
    mean, std = (torch.tensor(preparation[key]).reshape(-1, 1, 1) for key in ("mean", "std"))
    images = samples.inputs * std + mean

    def accuracy(these: Tensor) -> float:
        return Samples((these - mean) / std, samples.targets).score(model).accuracy

    metrics = {"corrupted/clean": accuracy(images)}
    for name in CORRUPTIONS.names():
        accuracies = [accuracy(corrupted(images, name, strength)) for strength in STRENGTHS]
        metrics[f"corrupted/{name}"] = statistics.fmean(accuracies)
        metrics[f"corrupted/{name}_5"] = accuracies[-1]
        tell(f"{name}: {' '.join(f'{value:.3f}' for value in accuracies)}")
    means = [metrics[f"corrupted/{name}"] for name in CORRUPTIONS.names()]
    return {"corrupted/accuracy": statistics.fmean(means), **metrics}
