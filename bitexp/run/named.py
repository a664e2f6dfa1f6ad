"""Which registered classes a config names: their code is part of a run's identity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bitexp.config.schema import Settings
from bitexp.data import DATA
from bitexp.models import MODELS
from bitexp.quant.calibration import CALIBRATIONS
from bitexp.quant.options import REGISTRIES, LayerOptions
from bitexp.quant.quantizer import Quantizer
from bitexp.run.distill import OWN
from bitexp.run.parts import Parts
from bitexp.tasks import OBJECTIVES, TASKS
from bitexp.tasks.distillation import LOSSES


def named_classes(settings: Settings, parts: Parts) -> dict[str, dict[str, Any]]:
    """What is registered under the names in a config, by section and word; `auto` names the chosen kernel.

    Trackers are left out, since they change no result.
    """
    objectives = {f"objectives.{name}": OBJECTIVES.get(name) for name in parts.task.objectives}
    name = settings.calibrate.name
    losses = () if settings.distill is None else settings.distill.losses
    kernel = {parts.kernel_name: parts.kernel} if parts.quantizer.quantizes else {}
    return {
        "data": {settings.data.name: DATA.get(settings.data.name)},
        "model": {settings.model.name: MODELS.get(settings.model.name)},
        "task": {settings.task.name: TASKS.get(settings.task.name), **objectives},
        "quantizer": {
            f"{key}={part.name}": registry.get(part.name)
            for options in all_options(parts.quantizer)
            for key, registry in REGISTRIES.items()
            if (part := getattr(options, key)) is not None
        },
        "kernel": kernel,
        "calibrate": {} if name == "none" else {name: CALIBRATIONS.get(name)},
        "distill": {name: LOSSES.get(name) for name in losses if name != OWN},
    }


def all_options(quantizer: Quantizer) -> Iterator[LayerOptions]:
    """What quantized layers are made of, anywhere in the model and at any time."""
    for options in quantizer.variants():
        if options.weights is not None:
            yield options
            yield from (stage for _, stage in quantizer.staged(options))
