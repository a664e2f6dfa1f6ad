"""What a run is made of: data, task with its model, quantizer, kernel, trackers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from bitexp.data.base import Data
from bitexp.deploy.sources import Source
from bitexp.kernels.registry import Kernel
from bitexp.quant.calibration import Calibration
from bitexp.quant.convert import Conversion
from bitexp.quant.quantizer import Quantizer
from bitexp.run.start import Loaded
from bitexp.tasks import Task
from bitexp.track.trackers import Tracker


@dataclass
class Parts:
    """All of it, built and not run yet."""

    data: Data
    task: Task
    quantizer: Quantizer
    conversion: Conversion
    kernel: Kernel
    kernel_name: str
    kernel_reason: str
    trackers: Mapping[str, Tracker]
    start: Loaded | None = None
    """What the model began with; None: random weights."""
    teacher: Source | None = None
    """Whom the task learns from, where it has a teacher."""
    calibration: Calibration | None = None
    """What is done to the network instead of training it."""

    @property
    def model(self) -> nn.Module:
        """The network, with its quantized layers."""
        return self.task.model
