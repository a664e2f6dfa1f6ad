"""torchvision beside a CPU-only torch: its wheel registers operators that only its CUDA build defines.

`import torchvision` then fails, and `import pytorch_lightning` with it, because torchmetrics imports
torchvision wherever it is installed. A healthy installation is not touched.
"""

from __future__ import annotations

import sys
import warnings
from types import ModuleType

import torch

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def import_torchvision() -> ModuleType:
    """Imports torchvision; where its operators are missing, declares their schemas and tries again."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name, schema in _SCHEMAS.items():
            torch.library.define(f"torchvision::{name}", schema)
        for module in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torchvision
    return torchvision
