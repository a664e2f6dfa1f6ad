"""Lightning, imported after torchvision is repaired, since its torchmetrics imports that."""

from __future__ import annotations

from bitexp.common.torchvision import import_torchvision

import_torchvision()

import pytorch_lightning as pl  # noqa: E402

__all__ = ["pl"]
