"""ParetoQ's own code."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any


def pareto() -> Any:
    """ParetoQ's file out of the package torchao, without importing the rest of that."""
    spec = importlib.util.find_spec("torchao")
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "prototype" / "paretoq" / "models" / "utils_quant.py"
    own = importlib.util.spec_from_file_location("pareto_utils_quant", path)
    assert own is not None
    assert own.loader is not None
    module = importlib.util.module_from_spec(own)
    own.loader.exec_module(module)
    return module
