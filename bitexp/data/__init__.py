"""The data sets, as LightningDataModules.

Every module of this folder is loaded, so that a new data set is one file.
"""

from __future__ import annotations

from bitexp.common.registry import load_modules
from bitexp.data.registry import DATA

load_modules(__name__, __path__)

__all__ = ["DATA"]
