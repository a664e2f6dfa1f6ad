"""The data sets, as LightningDataModules.

Every module of this folder is loaded, so that a new data set is one file.
"""

from __future__ import annotations

from typing import Any

from bitexp.common.registry import load_modules
from bitexp.config.choices import read_choice
from bitexp.data.base import Data
from bitexp.data.registry import DATA

load_modules(__name__, __path__)

__all__ = ["DATA", "Data", "load_data"]


def load_data(name: str, *, seed: int = 0, **arguments: Any) -> Any:
    """The data set that `data=NAME` chooses, a LightningDataModule; it is read on first use.

    Args:
        seed: of the order of the training samples.
        arguments: other values for the keys of its YAML.

    Raises:
        UnknownName: there is no such YAML.
        TypeError: unknown arguments.
    """
    section = read_choice("data", name)
    return DATA.get(section.pop("name"))(**section | arguments, seed=seed)
