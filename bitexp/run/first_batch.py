"""What is seen of the data before, or instead of, training."""

from __future__ import annotations

import torch
from torch import Tensor

from bitexp.data.base import Data
from bitexp.quant.backend import TORCH
from bitexp.quant.layers import QuantizedLayer, quantized_layers, set_backend, set_progress
from bitexp.run.parts import Parts


def calibrate(parts: Parts) -> None:
    """Lets activation quantizers that begin with data see one fixed batch, the first of the training.

    Layers calibrate one after the other, each on what those before it give. A buffer keeps that they did,
    so that a resumed run does not repeat it; and every process sees the same batch.
    """
    model = parts.model
    set_progress(model, 0.0)
    layers = [layer for layer in quantized_layers(model).values() if uncalibrated(layer)]
    if layers:
        modes = {module: module.training for module in model.modules()}
        model.eval()
        set_backend(model, TORCH)  # the kernel's own may need a GPU
        for layer in layers:
            layer.training = True
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            model(next(iter(parts.data.train_dataloader()))[0])
        set_backend(model, parts.kernel.backend)
        for module, mode in modes.items():
            module.training = mode
    set_progress(model, 1.0)


def uncalibrated(layer: QuantizedLayer) -> bool:
    """Whether a layer waits for a batch."""
    activations = layer.active.activations
    return activations is not None and not activations.calibrated


def first_samples(data: Data, samples: int) -> list[tuple[Tensor, Tensor]]:
    """The first training samples of the first epoch, in batches; the whole epoch where it has fewer."""
    data.prepare_data()
    data.setup("fit")
    batches: list[tuple[Tensor, Tensor]] = []
    for inputs, targets in data.train_dataloader():
        batches.append((inputs[:samples], targets[:samples]))
        samples -= len(inputs)
        if samples <= 0:
            break
    return batches
