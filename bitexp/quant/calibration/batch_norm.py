"""Batch norms that know the statistics of the quantized network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from bitexp.quant.calibration.base import CALIBRATIONS, Calibration, Told


@CALIBRATIONS.register("bn")
class BatchNormCalibration(Calibration):
    """Mean and variance of every batch norm anew, as means over batches of inputs (arXiv 2006.10518).

    What `torch.optim.swa_utils.update_bn` does to an averaged network: rounding shifts the statistics that a
    network in full precision was trained to. All else, dropout too, is in evaluation.
    """

    def check(self, model: nn.Module) -> None:
        if not any(batch_norms(model)):
            raise ValueError(
                "calibrate=bn estimates the statistics of batch norms, and this network has none; use "
                "calibrate=none, adaround or adaquant"
            )

    def __call__(
        self, model: nn.Module, batches: Sequence[Tensor], told: Told = lambda *_: None
    ) -> dict[str, tuple[float, float]]:
        estimate(model, batches)
        return {}


BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


def batch_norms(model: nn.Module) -> Iterator[BatchNorm]:
    """Those that keep statistics."""
    return (m for m in model.modules() if isinstance(m, BatchNorm) and m.track_running_stats)


@torch.no_grad()
def estimate(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Sets the statistics of all batch norms to their means over the batches."""
    norms = list(batch_norms(model))
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    for batch in batches:
        model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
