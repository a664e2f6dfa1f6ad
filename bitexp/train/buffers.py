"""What each of several processes measures by itself, as the statistics of batch norm."""

from __future__ import annotations

import torch
from torch import nn

from bitexp.common.lightning import pl

BATCH_NORM = nn.modules.batchnorm._BatchNorm


class FirstBuffers(pl.Callback):
    """Before a validation every process takes the buffers of the first, which are those of a checkpoint."""

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.world_size > 1:
            for buffer in pl_module.buffers():
                torch.distributed.broadcast(buffer, 0)


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a part of a model normalizes by the batch, of which each process has its own."""
    return any(isinstance(module, BATCH_NORM) for module in model.modules())
