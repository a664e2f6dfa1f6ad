"""All that a quantized layer is besides its tensors: one value for training, kernels, files and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from torch import Tensor

from bitexp.quant.levels import TERNARY, Levels

Norm = Literal["none", "rms", "layer"]
BiasRule = Literal["plain", "scaled"]
Granularity = Literal["tensor", "channel", "group"]

EPS = 1e-5  # floor of every scale, as in all BitNet code bases
EXACT = 2**24
"""Up to here every integer is an fp32 number."""

ConvArgs = tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]
"""stride, padding, dilation, groups"""


@dataclass(frozen=True)
class Part:
    """A registered part of a quantizer by its name, with its options: what YAML says of it."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(value: str | Mapping[str, Any] | Part | None) -> Part | None:
        """From a bare word or a section with a `name`; `none` is no part.

        Raises:
            ValueError: a section without a name.
        """
        if value is None or isinstance(value, Part):
            return value
        section = {"name": value} if isinstance(value, str) else dict(value)
        name = section.pop("name", None)
        if not isinstance(name, str):
            raise ValueError(f"the section {section} has no name; write one of its group, or none")
        return None if name == "none" else Part(name, section)

    def to_json(self) -> dict[str, Any]:
        """As a section of YAML."""
        return {"name": self.name, **self.options}


@dataclass(frozen=True)
class ActivationSpec:
    """How activations become codes, as far as kernels and files have to know.

    Args:
        part: the activation quantizer with all its options.
        levels: what its codes may be.
        absmax: codes are `rint(x * absmax / max|x|)`, clipped to the levels: kernels make these in their own
            loops. None: torch makes the codes, another way.
    """

    part: Part
    levels: Levels
    absmax: int | None = None


INT8 = ActivationSpec(Part("int8", {"qmax": 127}), Levels(-127, 127), absmax=127)
"""The activations of BitNet b1.58: int8 by the largest value of a token."""


@dataclass(frozen=True)
class LayerSpec:
    """A quantized layer without its tensors; by default BitNet b1.58's, linear, its input normed already.

    Args:
        shape: of the weights, `[out, in]` or `[out, in / groups, height, width]`; empty where it does not
            matter. conv: of a convolution; None for a linear layer. norm: of the input, without parameters,
            over its features. transform, sparsifier: of the normed input. activations: None leaves them
            floats. weights: the weight quantizer; None leaves the weights floats, and then nothing is
            quantized. levels: of the weights' codes. shift: whether dequantized weights have a constant
            added to each row. bias: `plain` adds it to the output, `scaled` before the scales are applied.
            output_norm: of the product, over its outputs, before the bias.
    """

    shape: tuple[int, ...] = ()
    conv: ConvArgs | None = None
    norm: Norm = "none"
    transform: Part | None = None
    sparsifier: Part | None = None
    activations: ActivationSpec | None = INT8
    weights: Part | None = field(default_factory=lambda: Part("ternary_mean"))
    levels: Levels = TERNARY
    shift: bool = False
    bias: BiasRule = "plain"
    output_norm: Norm = "none"

    absmax: int | None = field(init=False, repr=False, compare=False)
    """The code of a token's largest input, where kernels make the codes; None where they do not."""
    wide: bool = field(init=False, repr=False, compare=False)
    """Whether a sum over codes can leave the integers that fp32 holds exactly."""

    def __post_init__(self) -> None:
        # here, since every step asks for them, and torch.compile cannot follow cached properties
        absmax, wide = None, False
        if self.activations is not None:
            absmax = self.activations.absmax
            wide = prod(self.shape[1:]) * self.activations.levels.largest * self.levels.largest > EXACT
        object.__setattr__(self, "absmax", absmax)
        object.__setattr__(self, "wide", wide)

    def attributes(self) -> dict[str, Any]:
        """What an ordinary layer of this shape says of itself: `in_features`, `kernel_size` and the like."""
        if self.conv is None:
            return {"in_features": self.shape[1], "out_features": self.shape[0]}
        stride, padding, dilation, groups = self.conv
        return {
            "in_channels": self.shape[1] * groups,
            "out_channels": self.shape[0],
            "kernel_size": self.shape[2:],
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "padding_mode": "zeros",
        }

    def to_json(self) -> dict[str, Any]:
        """As JSON values, parts as sections of YAML."""

        def section(part: Part | None) -> dict[str, Any] | None:
            return None if part is None else part.to_json()

        return {
            "shape": list(self.shape),
            "conv": self.conv,
            "norm": self.norm,
            "transform": section(self.transform),
            "sparsifier": section(self.sparsifier),
            "activations": section(self.activations.part if self.activations else None),
            "weights": section(self.weights),
            "levels": self.levels.to_json(),
            "shift": self.shift,
            "bias": self.bias,
            # only where there is one: files of before it was known have no such key
            **({} if self.output_norm == "none" else {"output_norm": self.output_norm}),
        }


@dataclass(frozen=True)
class Geometry:
    """Where the features, the tokens and the outputs lie: a linear layer, or a 2-d convolution."""

    conv: ConvArgs | None

    @property
    def feature_dim(self) -> int:
        """The dimension a norm runs over: features of a token, channels at each pixel."""
        return -1 if self.conv is None else -3

    def features(self, shape: Sequence[int]) -> int:
        """Inputs of a linear layer, or input channels of a convolution, by the shape of its weights."""
        return shape[1] * (1 if self.conv is None else self.conv[3])

    @property
    def scale_dims(self) -> tuple[int, ...]:
        """What shares one activation scale: a token; for a convolution a whole sample."""
        return (-1,) if self.conv is None else (-3, -2, -1)

    def spread(self, per_output: Tensor) -> Tensor:
        """A value per tensor or per output, shaped to multiply the output."""
        return per_output if self.conv is None or per_output.dim() == 0 else per_output[:, None, None]

    def sum_outputs(self, grad: Tensor) -> Tensor:
        """Sum of an output-shaped tensor over all but the outputs: the gradient of a bias."""
        return rows(grad).sum(0) if self.conv is None else grad.sum((-4, -2, -1))


def rows(x: Tensor) -> Tensor:
    """All tokens below each other, `[..., K] -> [tokens, K]`; one token may come as `[K]`."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
