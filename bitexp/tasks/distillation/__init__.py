"""Learning from a teacher: who it is, what is compared, and what is kept of it."""

from __future__ import annotations

from bitexp.tasks.distillation.distiller import NOTHING, Distiller
from bitexp.tasks.distillation.losses import LOSSES, DistillationLoss, Seen

__all__ = ["LOSSES", "NOTHING", "DistillationLoss", "Distiller", "Seen"]
