"""The data sets, as LightningDataModules.

Every module of this folder is loaded, so that a new data set is one file.
"""

from __future__ import annotations

import bitexp.compat  # noqa: F401  (before the first import of pytorch_lightning)

import importlib
import pkgutil

from bitexp.data.registry import DATA

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["DATA"]
