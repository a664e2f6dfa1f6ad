"""The registry of quantizers, and what a quantizer is: latent weights in, integer codes and a step out."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from bitexp.common.registry import Registry
from bitexp.quant.backend import Arithmetic
from bitexp.quant.spec import EPS, Granularity, Norm


class Quantizer:
    """How the weights and the activations of a layer are quantized, and what norm precedes them.

    A subclass says which integers its codes are (`low`, `high`), how many bits a weight carries, and
    gives `step` and, where rounding is not its way, `codes`.

    Args:
        norm: parameter-free norm of the input: none, rms or layer, over the features of a token.
        activations: `int8` (per-token absmax) or `none` (they stay floats).
        act_qmax: an activation code is `rint(x * act_qmax / absmax)`: 127, or 128 (clipped at 127) as
            PyPI `bitlinear` has it since 2.0.
        granularity: one step per tensor, per output channel, or per group of inputs.
        group_size: inputs per group; only with `granularity="group"`.
        bias: `plain` adds the bias to the output; `scaled` adds it before the scales are applied, as
            PyPI `bitlinear` does.
    """

    bits: ClassVar[float]
    low: ClassVar[int]
    high: ClassVar[int]
    replaces_layers: ClassVar[bool] = True
    quantizes_weights: ClassVar[bool] = True

    def __init__(
        self,
        *,
        norm: Norm,
        activations: Literal["int8", "none"],
        act_qmax: Literal[127, 128],
        granularity: Granularity,
        group_size: int | None,
        bias: Literal["plain", "scaled"],
    ) -> None:
        if (granularity == "group") != (group_size is not None):
            raise ValueError(
                f"granularity={granularity} and group_size={group_size} do not fit together: "
                "a group size goes with granularity=group, and only with it"
            )
        if group_size is not None and group_size < 1:
            raise ValueError(f"group_size={group_size} is no number of weights; use 1 or more")
        if bias == "scaled" and (activations == "none" or granularity != "tensor"):
            raise ValueError("bias=scaled needs activations=int8 and granularity=tensor")
        self.norm: Norm = norm
        self.activations = activations
        self.act_qmax = act_qmax if activations == "int8" else 0
        self.granularity: Granularity = granularity
        self.group_size = group_size
        self.bias = bias
        self.arithmetic = Arithmetic()

    def step(self, rows: Tensor) -> Tensor:
        """The step of each row: `[rows, weights] -> [rows, 1]`, fp32."""
        raise NotImplementedError

    def codes(self, rows: Tensor, step: Tensor) -> Tensor:
        """The int8 code of each weight: `round(W / step)` clamped to `low..high`, half to even."""
        return self.arithmetic.rounded(rows, step, self.low, self.high)

    def weights(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Quantizes latent weights `[out, ...]`, apart from any graph.

        Returns:
            int8 codes in the shape of `weight`, and the fp32 steps: `[]` per tensor, `[out]` per
            channel, `[out, groups]` per group. `codes * step` is the dequantized weight.
        """
        latent = weight.detach().float()
        if self.granularity == "tensor":
            rows, shape = latent.reshape(1, -1), torch.Size()
        elif self.granularity == "channel":
            rows, shape = latent.flatten(1), latent.shape[:1]
        else:
            size = self.group_size or 1
            if latent[0].numel() % size:
                raise ValueError(
                    f"group_size={size} does not divide the {latent[0].numel()} inputs of a layer"
                )
            rows = latent.reshape(-1, size)
            shape = torch.Size((latent.shape[0], latent[0].numel() // size))
        step = self.step(rows).clamp(min=EPS)
        codes = self.codes(rows, step).to(torch.int8).reshape(latent.shape)
        return codes, step.reshape(shape)


QUANTIZERS: Registry[type[Quantizer]] = Registry("quantizer")
