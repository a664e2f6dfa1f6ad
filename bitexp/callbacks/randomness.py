"""All randomness of a training batch (dropout, mixup, stochastic rounding) from (seed, epoch, batch, rank).

Nothing of a generator has to be saved: a resumed run draws what the undisturbed one would have drawn.
"""

from __future__ import annotations

import bitexp.compat  # noqa: F401

import hashlib
from typing import Any

import pytorch_lightning as pl
import torch


def derived_seed(*parts: object) -> int:
    """A 63-bit seed from any values with a stable `repr`."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


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
