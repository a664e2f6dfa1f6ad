"""What the quantizer does to the weights: zeros, flips, scales and tails, by layer and over the body."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitexp.common.lightning import pl
from bitexp.quant.layers import quantized_layers
from bitexp.track.metrics import send


class Diagnostics(pl.Callback):
    """Logs after every validation: `quant/zero_fraction`, `quant/flip_rate`, `quant/scale`, `quant/kurtosis`.

    The flip rate is the share of codes that differ from those at the last validation (at the start,
    for the first). Over the body, shares are weighted by layer size; by layer the names are
    `quant/<measure>/<layer>`; `quant/scale_drift` is the mean ratio of the scales to the first ones.
    The kurtosis is that of the latent weights: 3 of a normal distribution, more of one with heavy tails.
    """

    def __init__(self) -> None:
        self.codes: dict[str, Tensor] = {}
        self.first: dict[str, float] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, layer in quantized_layers(pl_module.model).items():  # type: ignore[arg-type]
            quantized = layer.quantized()
            self.codes.setdefault(name, quantized.code_of_each().cpu())
            self.first.setdefault(name, float(quantized.scale.mean()))

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        layers = quantized_layers(pl_module.model)  # type: ignore[arg-type]
        if trainer.sanity_checking or not trainer.is_global_zero or not layers:
            return
        values: dict[str, float] = {}
        total = zeros = flips = 0
        drift = tails = 0.0
        for name, layer in layers.items():
            quantized = layer.quantized()
            codes, mean_scale = quantized.code_of_each().cpu(), float(quantized.scale.cpu().mean())
            zero = int((codes == 0).sum())
            flipped = int((codes != self.codes[name]).sum())
            values[f"quant/zero_fraction/{name}"] = zero / codes.numel()
            values[f"quant/flip_rate/{name}"] = flipped / codes.numel()
            values[f"quant/scale/{name}"] = mean_scale
            values[f"quant/kurtosis/{name}"] = kurtosis(layer.weight)
            tails += codes.numel() * values[f"quant/kurtosis/{name}"]
            total, zeros, flips = total + codes.numel(), zeros + zero, flips + flipped
            drift += mean_scale / self.first[name] / len(layers)
            self.codes[name] = codes
        values["quant/zero_fraction"] = zeros / total
        values["quant/flip_rate"] = flips / total
        values["quant/scale_drift"] = drift
        values["quant/kurtosis"] = tails / total
        send(trainer, values)

    def state_dict(self) -> dict[str, Any]:
        return {"codes": self.codes, "first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.codes, self.first = state_dict["codes"], state_dict["first"]


def kurtosis(weight: Tensor) -> float:
    """The fourth moment about the mean over the square of the second; 0 where all weights are the same."""
    centred = weight.detach().double() - weight.detach().double().mean()
    variance = float(centred.square().mean())
    return float(centred.pow(4).mean()) / variance**2 if variance else 0.0
