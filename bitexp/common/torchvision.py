"""torchvision beside a CPU-only torch: its wheel registers operators that only its CUDA build defines.

`import torchvision` then fails. A healthy installation is not touched.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType

import torch

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def import_torchvision(name: str = "torchvision") -> ModuleType:
    """A module of torchvision; where its operators are missing, declares their schemas and tries again."""
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for operator, schema in _SCHEMAS.items():
            torch.library.define(f"torchvision::{operator}", schema)
        for module in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
