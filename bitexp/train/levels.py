"""AdamW that knows the levels of weights: it pulls latents to them, or moves from level to level without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bitexp.quant.layers import QuantizedLayer
from bitexp.train.closures import evaluated

Layers = Mapping[Tensor, QuantizedLayer]
"""Quantized layers by their latent weights."""


class Pulled(torch.optim.AdamW):
    """Pulls latents to their quantized values: `w - lr pull_t (w - Q(w))` in a step (CAGE, arXiv 2510.18784).

    Decoupled from the moments, as weight decay is. The pull is 0 for the share `silent` of the training, then
    rises linearly to `pull`. Where a transform maps the weights before they are quantized, the gradient of
    half the squared distance is taken. The share is the groups' `share`, which the schedule sets.
    """

    def __init__(
        self, groups: list[dict[str, Any]], layers: Layers, *, pull: float, silent: float, **options: Any
    ) -> None:
        super().__init__([{**group, "share": 0.0} for group in groups], fused=True, **options)
        self.layers, self.pull, self.silent = layers, pull, silent

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = evaluated(closure)
        for group in self.param_groups:
            risen = max(0.0, (group["share"] - self.silent) / (1 - self.silent))
            for weight in group["params"] if risen > 0 else ():
                if weight in self.layers and weight.grad is not None:
                    gap = self.layers[weight].rounding_gradient()
                    weight.data.sub_(gap, alpha=group["lr"] * self.pull * risen)
        super().step()
        return loss


class Leveled(torch.optim.AdamW):
    """Moves weights from level to level, at most one in a step, with nothing between (DQT, arXiv 2412.04787).

    Where AdamW would move a weight by a share of the distance of two levels, it moves by one with that
    probability; draws are from torch's global generator. Weights are their own quantized values throughout.

    Raises:
        ValueError: a layer whose scale follows its weights; those of `fixed` weights do not.
    """

    def __init__(self, groups: list[dict[str, Any]], layers: Layers, **options: Any) -> None:
        others = [layer for layer in layers.values() if not layer.parts.weights.fixed_scale]
        if others or not layers:
            raise ValueError("optimizer=dqt needs weights whose scale stays: use quantizer.weights=fixed")
        super().__init__(groups, fused=True, **options)
        self.layers = layers
        with torch.no_grad():
            for weight, layer in layers.items():
                weight.copy_(layer.quantized().dequantized())

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = evaluated(closure)
        before = {weight: self.layers[weight].quantized() for weight in self.layers}
        super().step()
        for weight, (codes, scale, _) in before.items():
            levels, quantized = self.layers[weight].spec.levels, before[weight]
            moved = (weight - quantized.dequantized()) / quantized.spread_scale() / levels.stride
            up = (moved.clamp(-1, 1) + torch.rand_like(moved)).floor() * levels.stride
            new = (codes + up).clamp(levels.low, levels.high).to(torch.int8)
            weight.copy_(quantized._replace(codes=new, scale=scale).dequantized())
        return loss
