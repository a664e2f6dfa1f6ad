"""All randomness of a training batch (dropout, mixup, stochastic rounding) from (seed, epoch, batch, rank).

Nothing of a generator has to be saved: a resumed run draws what the undisturbed one would have drawn.
"""

from __future__ import annotations

from typing import Any

import torch

from bitexp.common.lightning import pl
from bitexp.common.randomness import derived_seed


class Randomness(pl.Callback):
    """Seeds torch's global generators before every training batch."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        seed = derived_seed(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():  # else torch.manual_seed queues a call with a traceback, every time
            torch.cuda.manual_seed(seed)
