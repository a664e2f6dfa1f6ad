"""A learned range: LSQ's step size, LSQ+ with an offset, PACT's clip. They begin with the first batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bitexp.quant.activations.unsigned import unsigned
from bitexp.quant.levels import Levels
from bitexp.quant.parts import ACTIVATIONS, ActivationQuantizer
from bitexp.quant.product import Quantized
from bitexp.quant.spec import EPS, ActivationSpec, Part


class Calibrated(ActivationQuantizer):
    """What it learns is set by the first training batch that is not empty: a buffer keeps that it was."""

    begun: Tensor

    def __init__(self, spec: ActivationSpec) -> None:
        super().__init__(spec)
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))
        self._begun = False  # of the buffer; to read that at every step would make a GPU wait

    @property
    def calibrated(self) -> bool:
        return self._begun

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        if not x.numel():
            return
        self.begin(x)
        if dist.is_available() and dist.is_initialized():  # each process has another first batch
            for parameter in self.learned():
                dist.all_reduce(parameter)
                parameter.div_(dist.get_world_size())
        self.begun.fill_(True)
        self._begun = True

    def begin(self, x: Tensor) -> None:
        """Sets the parameters by x."""
        raise NotImplementedError

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._begun = bool(self.begun)


@ACTIVATIONS.register("lsq")
class LSQActivations(Calibrated):
    """A learned step size for all tokens (arXiv 1902.08153 and section 2.2).

    What is clipped has no gradient. The step size gets, of each input, `round(x/s) - x/s` inside the range
    and the clipping level outside, times `1 / sqrt(features * highest level)`; for convolutions features are
    the channels. It begins with `2 mean|x| / sqrt(highest level)` of the first training batch.

    Args:
        bits: 2 to 8, signed; 1 to 7, unsigned.
        signed: two's complement, for normed inputs; else 0 .. 2^bits - 1, for what comes from a ReLU.
    """

    def __init__(self, features: int, *, bits: int = 4, signed: bool = True) -> None:
        if signed and not 2 <= bits <= 8:
            raise ValueError(f"bits={bits} must be from 2 to 8")
        levels = Levels.signed(bits) if signed else unsigned("lsq", bits).levels
        super().__init__(ActivationSpec(Part("lsq", {"bits": bits, "signed": signed}), levels))
        self.gradient_scale = (features * levels.high) ** -0.5
        self.step_size = nn.Parameter(torch.tensor(2 * 0.8 / levels.high**0.5))  # 0.8 is mean|x| of normed x

    def begin(self, x: Tensor) -> None:
        self.step_size.copy_((2 * x.abs().mean() / self.spec.levels.high**0.5).clamp(min=EPS))

    def codes(self, x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        scale = self.step_size.detach().clamp(min=EPS).reshape([1] * x.dim())
        codes = (x / scale).round_().clamp_(self.spec.levels.low, self.spec.levels.high)
        return codes.to(torch.int8), scale

    def gradients(
        self, grad: Tensor, x: Tensor, quantized: Quantized, *learned: Tensor
    ) -> tuple[Tensor, ...]:
        return self.slopes(grad, x.detach(), quantized)[:2]

    def slopes(self, grad: Tensor, x: Tensor, quantized: Quantized) -> tuple[Tensor, Tensor, Tensor]:
        """With respect to x and the step size, and where x is inside the range."""
        levels, ratio = self.spec.levels, x / quantized.scale
        inside = (ratio >= levels.low) & (ratio <= levels.high)
        slope = torch.where(inside, quantized.codes - ratio, quantized.codes.to(ratio.dtype))
        return grad * inside, (grad * slope).sum() * self.gradient_scale, inside


@ACTIVATIONS.register("lsq_plus")
class LSQPlus(LSQActivations):
    """LSQ with a learned offset: `x` is about `codes * step size + shift` (LSQ+, arXiv 2004.09576).

    The offset gets the gradient of what is clipped. Both begin with the range of the first batch, at most
    three standard deviations to each side, where the paper minimizes a squared error.

    Args:
        bits: 2 to 8.
    """

    has_shift = True

    def __init__(self, features: int, *, bits: int = 4) -> None:
        super().__init__(features, bits=bits)
        self.spec = ActivationSpec(Part("lsq_plus", {"bits": bits}), self.spec.levels)
        self.shift = nn.Parameter(torch.zeros(()))

    def begin(self, x: Tensor) -> None:
        levels, spread = self.spec.levels, 3 * x.std(correction=0)
        low = torch.maximum(x.min(), x.mean() - spread)
        high = torch.minimum(x.max(), x.mean() + spread)
        self.step_size.copy_(((high - low) / (levels.high - levels.low)).clamp(min=EPS))
        self.shift.copy_(low - levels.low * self.step_size)

    def codes(self, x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        return super().codes(x - self.shift.detach(), dims)

    def gradients(
        self, grad: Tensor, x: Tensor, quantized: Quantized, *learned: Tensor
    ) -> tuple[Tensor, ...]:
        of_x, of_step, inside = self.slopes(grad, x.detach() - learned[1], quantized)
        return of_x, of_step, (grad * ~inside).sum()


@ACTIVATIONS.register("pact")
class Pact(ActivationQuantizer):
    """Unsigned codes below a learned clip: `clamp(x, 0, clip)`, 2^bits levels (arXiv 1805.06085).

    The clip gets the gradient of what is above it, and that of the paper's L2 loss, without which a clip that
    is above all inputs would stay there.

    Args:
        bits: 1 to 7.
        start: the clip that it begins with.
        decay: of the L2 loss `decay * clip^2 / 2`.
    """

    def __init__(self, *, bits: int = 4, start: float = 10.0, decay: float = 1e-4) -> None:
        if not start > 0:
            raise ValueError(f"start={start} must be above 0")
        if decay < 0:
            raise ValueError(f"decay={decay} must not be negative")
        levels = unsigned("pact", bits).levels
        part = Part("pact", {"bits": bits, "start": start, "decay": decay})
        super().__init__(ActivationSpec(part, levels))
        self.decay = decay
        self.clip = nn.Parameter(torch.tensor(start, dtype=torch.float32))

    def codes(self, x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        high = self.spec.levels.high
        clip = self.clip.detach()
        scale = (clip / torch.full_like(clip, high)).clamp(min=EPS).reshape([1] * x.dim())
        return (x / scale).round_().clamp_(0, high).to(torch.int8), scale

    def gradients(
        self, grad: Tensor, x: Tensor, quantized: Quantized, *learned: Tensor
    ) -> tuple[Tensor, ...]:
        (clip,) = learned
        of_clip = (grad * (x >= clip)).sum() + self.decay * clip
        return grad * ((x >= 0) & (x < clip)), of_clip
