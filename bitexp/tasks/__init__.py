"""LightningModules: what is trained and how it is measured. Every module of this folder is loaded."""

from __future__ import annotations

from bitexp.common.registry import load_modules
from bitexp.tasks.distillation import LOSSES, DistillationLoss, Seen
from bitexp.tasks.objectives import OBJECTIVES, Objective, Trained
from bitexp.tasks.task import TASKS, Task

load_modules(__name__, __path__)

__all__ = [
    "LOSSES",
    "OBJECTIVES",
    "TASKS",
    "DistillationLoss",
    "Objective",
    "Seen",
    "Task",
    "Trained",
]
