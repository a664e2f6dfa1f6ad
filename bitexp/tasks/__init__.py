"""LightningModules: what is trained and how it is measured. Every module of this folder is loaded."""

from __future__ import annotations

import importlib
import pkgutil

from bitexp.tasks.task import TASKS, Task

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["TASKS", "Task"]
