"""The reference kernel: plain torch on any device, the arithmetic of the training forward itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bitexp.kernels.registry import KERNELS
from bitexp.quant.absmax import absmax_codes
from bitexp.quant.backend import TORCH, Backend
from bitexp.quant.product import Quantized, scaled_product
from bitexp.quant.spec import Geometry, LayerSpec, Norm

PLAIN = LayerSpec()


class Reference:
    """Keeps int8 codes and multiplies them as fp32 integers. The oracle of every other kernel."""

    backend: Backend = TORCH

    def unavailable(self, device: str) -> str | None:
        return None

    def prepare(self, codes: Tensor, scale: Tensor, shift: Tensor | None = None) -> Any:
        return Quantized(codes, scale, shift)

    def takes_norm(self, prepared: Any, spec: LayerSpec) -> bool:
        return False

    def forward(
        self,
        x: Tensor,
        prepared: Any,
        bias: Tensor | None = None,
        spec: LayerSpec = PLAIN,
        norm: Norm = "none",
    ) -> Tensor:
        x_scale, x = None, self.backend.normalize(x, norm, Geometry(spec.conv).feature_dim)[0]
        if spec.activations is not None:
            if spec.absmax is None:
                raise ValueError(
                    f"the codes of {spec.activations.part.name} activations are made by their quantizer: "
                    "give them to forward_codes"
                )
            x, x_scale = absmax_codes(x, spec.absmax, Geometry(spec.conv).scale_dims)
        return scaled_product(x, x_scale, self.weights(prepared), bias, spec, self.backend)

    def forward_codes(
        self,
        codes: Tensor,
        scale: Tensor,
        prepared: Any,
        bias: Tensor | None = None,
        spec: LayerSpec = PLAIN,
    ) -> Tensor:
        return scaled_product(codes, scale, self.weights(prepared), bias, spec, self.backend)

    def weights(self, prepared: Any) -> Quantized:
        """The integers of prepared weights."""
        weights: Quantized = prepared
        return weights


KERNELS.register("reference")(Reference())
