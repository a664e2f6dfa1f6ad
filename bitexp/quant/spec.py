"""What of a layer is no tensor: geometry, norm, granularity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

EXACT = 2**24

ConvArgs = tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]
"""stride, padding, dilation, groups"""


@dataclass(frozen=True)
class Geometry:
    """Where the features, the tokens and the outputs lie: a linear layer, or a 2-d convolution."""

    conv: ConvArgs | None

    @property
    def feature_dim(self) -> int:
        """The dimension a norm runs over: features of a token, channels at each pixel."""
        return -1 if self.conv is None else -3

    @property
    def scale_dims(self) -> tuple[int, ...]:
        """What shares one activation step: a token; for a convolution a whole sample."""
        return (-1,) if self.conv is None else (-3, -2, -1)

    def spread(self, per_output: Tensor) -> Tensor:
        """A value per tensor or per output, shaped to multiply the output."""
        return per_output if self.conv is None or per_output.dim() == 0 else per_output[:, None, None]

    def sum_outputs(self, grad: Tensor) -> Tensor:
        """Sum of an output-shaped tensor over all but the outputs: the gradient of a bias."""
        return rows(grad).sum(0) if self.conv is None else grad.sum((-4, -2, -1))


def rows(x: Tensor) -> Tensor:
    """All tokens below each other, `[..., K] -> [tokens, K]`; one token may come as `[K]`."""
    return x.reshape(-1, x.shape[-1])


Norm = Literal["none", "rms", "layer"]
Granularity = Literal["tensor", "channel", "group"]

EPS = 1e-5  # floor of every step, as in all BitNet code bases
