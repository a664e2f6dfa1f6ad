"""AdaRound: up or down is learned for every weight, by the error of the layer's outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from bitexp.quant.calibration.base import CALIBRATIONS
from bitexp.quant.calibration.reconstruction import Moments, Reconstruction, per_group
from bitexp.quant.layers import QuantizedLayer
from bitexp.quant.levels import Levels
from bitexp.quant.product import Quantized

ZETA, GAMMA = 1.1, -0.1
"""The rectified sigmoid is stretched to these, so that it reaches 0 and 1 (eq. 23)."""
BETA = (20.0, 2.0)
"""The power in the regularizer, at first and at last."""
CANDIDATES = 32
"""So many weights of an output are tried in pairs."""
WARMUP = 0.2
"""The share of the iterations without regularizer."""


@CALIBRATIONS.register("adaround")
class AdaRound(Reconstruction):
    """Rounds each weight up or down so that the layer's outputs change least (arXiv 2004.10568).

    Minimizes `|W x - W~ x^|^2 + strength * sum(1 - |2 h(V) - 1|^beta)` over V, where `W~` is `scale` times
    the level below W plus h(V) levels, and h a rectified sigmoid (eq. 21-25, there with the activation
    function around both products). The error of an output is taken in units of what rounding each of its
    weights at random would cost, so that `strength` means as much in every layer. Scales stay. Then single
    weights are turned over while that lowers an output's error, from what was found and from rounding to
    nearest, and the better one is kept: it is never worse than the latter.

    Args:
        strength: the paper's lambda, in these units.
        lr: of Adam on V.
    """

    def __init__(
        self,
        *,
        samples: int = 1024,
        iterations: int = 1000,
        strength: float = 1.0,
        lr: float = 0.01,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(samples=samples, iterations=iterations, batch_norm=batch_norm)
        if not strength > 0:
            raise ValueError(f"strength={strength} must be above 0")
        if not lr > 0:
            raise ValueError(f"lr={lr} must be above 0")
        self.strength, self.lr = strength, lr

    def choose(self, layer: QuantizedLayer, target: Tensor, moments: Moments) -> Quantized:
        nearest = layer.quantized()
        groups, levels = len(moments.gram), layer.spec.levels
        scale = nearest.spread_scale().expand_as(target)
        shift = nearest._replace(codes=torch.zeros_like(nearest.codes)).dequantized()
        rows = Rounding(
            per_group(target, groups), per_group(scale, groups), per_group(shift, groups), levels, moments
        )
        chosen = rows.flipped(rows.learned(self))
        rounded = rows.flipped((per_group(nearest.codes, groups) > rows.low_codes).to(chosen.dtype))
        better = (rows.error(chosen) < rows.error(rounded))[..., None]
        codes = rows.codes(torch.where(better, chosen, rounded))
        return nearest._replace(codes=codes.reshape(target.shape).to(torch.int8))


class Rounding:
    """The choices of one layer: for each weight `[groups, R, K]` the level below or that above."""

    def __init__(
        self, target: Tensor, scale: Tensor, shift: Tensor, levels: Levels, moments: Moments
    ) -> None:
        """For weights that are to be near `target` as `codes * scale + shift`."""
        steps = (((target - shift) / scale - levels.low) / levels.stride).clamp(0, levels.count - 1)
        below = steps.floor().clamp(max=levels.count - 2)
        self.low_codes, self.stride = levels.low + levels.stride * below, levels.stride
        self.step, self.fraction = scale * levels.stride, steps - below
        self.offset, self.moments = self.low_codes * scale + shift, moments

    def weights(self, up: Tensor) -> Tensor:
        """The weights, where `up` in [0, 1] says how far each is rounded up."""
        return self.offset + up * self.step

    def codes(self, up: Tensor) -> Tensor:
        """The codes, for choices 0 and 1."""
        return self.low_codes + self.stride * up

    def error(self, up: Tensor) -> Tensor:
        """The mean squared error of each output."""
        return self.moments.error(self.weights(up))

    def learned(self, options: AdaRound) -> Tensor:
        """0 or 1 for each weight, as it is learned by Adam."""
        # per output, since each has a problem of its own: the units of one do not touch another
        gram = self.moments.gram
        unit = (self.step.double().square() * gram.diagonal(0, -2, -1)[:, None]).mean(-1, keepdim=True) / 4
        unit = unit.clamp(min=1e-30).float()
        m = self.moments.to(torch.float32)
        # the rectified sigmoid is the fraction at first (its inverse)
        share = ((self.fraction - GAMMA) / (ZETA - GAMMA)).clamp(1e-4, 1 - 1e-4)
        v = share.logit().requires_grad_()
        adam = torch.optim.Adam([v], lr=options.lr)
        for step in range(options.iterations):
            sigmoid = v.detach().sigmoid()
            stretched = sigmoid * (ZETA - GAMMA) + GAMMA
            up = stretched.clamp(0, 1)
            slope = 2 * (self.weights(up) @ m.gram - m.cross) * self.step / unit
            passed = step / options.iterations
            if passed >= WARMUP:
                slope = slope + options.strength * regularizer_slope(up, annealed(passed))
            inside = (stretched > 0) & (stretched < 1)
            v.grad = slope * inside * (ZETA - GAMMA) * sigmoid * (1 - sigmoid)
            adam.step()
        return ((v.detach().sigmoid() * (ZETA - GAMMA) + GAMMA) > 0.5).to(self.step.dtype)

    def flipped(self, up: Tensor) -> Tensor:
        """The choices after some were turned over: in each output one or two at a time, those that help most.

        Two are taken from the weights that cost least alone. It ends where none lower the error.
        """
        gram, step, up = self.moments.gram, self.step.double(), up.double()
        slope = 2 * (self.weights(up).double() @ gram - self.moments.cross)
        diagonal = gram.diagonal(0, -2, -1)[:, None]
        count = min(CANDIDATES, up.shape[-1])
        group = torch.arange(len(gram), device=gram.device)[:, None, None]
        for _ in range(up.shape[-1]):
            change = step * (1 - 2 * up)
            cost, at = (change * (slope + change * diagonal)).topk(count, largest=False)
            moves = change.gather(-1, at)
            crossed = gram[group[..., None], at[..., :, None], at[..., None, :]]
            pairs = cost[..., :, None] + cost[..., None, :]
            pairs += 2 * crossed * moves[..., :, None] * moves[..., None, :]
            pairs.diagonal(0, -2, -1).copy_(cost)  # one alone
            least, place = pairs.flatten(-2).min(-1, keepdim=True)
            worth = least < -1e-9 * self.moments.power[..., None]
            if not worth.any():
                break
            first, second = place // count, place % count
            for chosen, helps in ((first, worth), (second, worth & (second != first))):
                index = at.gather(-1, chosen)
                moved = torch.where(helps, change.gather(-1, index), 0.0)
                slope += 2 * moved * gram[group, index][..., 0, :]
                up.scatter_(-1, index, (up.gather(-1, index) - helps.double()).abs())
        return up.to(self.step.dtype)


def annealed(passed: float) -> float:
    """beta after a share of the iterations."""
    share = (passed - WARMUP) / (1 - WARMUP)
    return BETA[1] + (BETA[0] - BETA[1]) * (1 - share)


def regularizer_slope(up: Tensor, beta: float) -> Tensor:
    """The derivative of `1 - |2 h - 1|^beta` (eq. 24)."""
    centered = 2 * up - 1
    return -2 * beta * centered.abs().pow(beta - 1) * centered.sign()
