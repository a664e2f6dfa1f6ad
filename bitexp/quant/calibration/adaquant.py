"""AdaQuant: weights, scales and bias of a layer are learned by the error of its outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from bitexp.quant.calibration.base import CALIBRATIONS
from bitexp.quant.calibration.reconstruction import Moments, Reconstruction, per_group
from bitexp.quant.layers import QuantizedLayer
from bitexp.quant.product import Quantized
from bitexp.quant.spec import EPS


@CALIBRATIONS.register("adaquant")
class AdaQuant(Reconstruction):
    """Learns changes of the weights, their scales and the bias (arXiv 2006.10518, eq. 2).

    Minimizes `|W x + b - (Q(W + dW) x^ + b')|^2` by Adam with the straight-through estimator. Where a layer
    has a bias, the best b' follows from the rest. Scales of activations are as they were: those of a token
    follow from it. Learning rates fall to 0 linearly, and the best codes
    and scales on the way are kept, among them rounding to nearest.

    Args:
        lr: of Adam on the weights, in units of the distance between levels.
        scale_lr: of Adam on the logarithm of the scales.
    """

    moves_bias = True

    def __init__(
        self,
        *,
        samples: int = 1024,
        iterations: int = 500,
        lr: float = 0.01,
        scale_lr: float = 0.003,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(samples=samples, iterations=iterations, batch_norm=batch_norm)
        for name, value in (("lr", lr), ("scale_lr", scale_lr)):
            if not value >= 0:
                raise ValueError(f"{name}={value} must not be below 0")
        self.lr, self.scale_lr = lr, scale_lr

    def choose(self, layer: QuantizedLayer, target: Tensor, moments: Moments) -> Quantized:
        nearest, levels = layer.quantized(), layer.spec.levels
        unit, groups = nearest.spread_scale(), len(moments.gram)
        shift = nearest._replace(codes=torch.zeros_like(nearest.codes)).dequantized()
        best, least = nearest, moments.error(per_group(nearest.dequantized(), groups)).sum()
        m = moments.to(torch.float32)
        place = (target - shift) / unit  # of the weights, in units of the first scales
        as_coded = nearest.codes.to(place.dtype)  # some methods round otherwise than to the nearest
        place = torch.where(levels.nearest(place) == as_coded, place, as_coded).requires_grad_()
        log_factor = torch.zeros_like(nearest.scale).requires_grad_()
        rates = [(place, self.lr * levels.stride), (log_factor, self.scale_lr)]
        adam = torch.optim.Adam([{"params": [value], "lr": lr} for value, lr in rates])
        for step in range(self.iterations):
            for group, (_, rate) in zip(adam.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - step / self.iterations)
            with torch.enable_grad():
                scale = (nearest.scale * log_factor.exp()).clamp(min=EPS)
                spread = nearest._replace(scale=scale).spread_scale()
                clipped = (place * unit / spread).clamp(levels.low, levels.high)
                codes = levels.nearest(clipped.detach())
                weight = (clipped + (codes - clipped).detach()) * spread + shift
                rows = per_group(weight, groups)
                loss = (rows * (rows @ m.gram - 2 * m.cross)).sum()
            error = moments.error(rows.detach()).sum()
            if error < least:
                best = nearest._replace(codes=codes.to(torch.int8), scale=scale.detach().clone())
                least = error
            place.grad, log_factor.grad = torch.autograd.grad(loss, [place, log_factor])
            adam.step()
        return best
