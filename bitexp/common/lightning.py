"""Lightning, imported after torchmetrics, which it imports as well, is spared what nobody needs."""

from __future__ import annotations

import bitexp.common.torchmetrics  # noqa: F401  # isort: skip

import pytorch_lightning as pl

__all__ = ["pl"]
