"""The data sets, as LightningDataModules.

Every module of this folder is loaded, so that a new data set is one file.
"""

from __future__ import annotations

import bitexp.compat  # noqa: F401  (before the first import of pytorch_lightning)

from bitexp.data.registry import DATA
from bitexp.registry import load_modules

load_modules(__name__, __path__)

__all__ = ["DATA"]
