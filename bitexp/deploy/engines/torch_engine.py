"""A program of torch.export, in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from bitexp.deploy.engines.engine import ENGINES, Engine


@ENGINES.register("torch")
class TorchEngine(Engine):
    """model.pt2."""

    target: ClassVar[str] = "torch"

    def __init__(self, folder: Path) -> None:
        self.model: Any = torch.export.load(folder / "model.pt2").module()

    def outputs(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = self.model(inputs)
        return found.float()
