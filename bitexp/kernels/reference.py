"""The reference kernel: plain torch on any device, the arithmetic of the training forward itself."""

from __future__ import annotations

from torch import Tensor

from bitexp.kernels.registry import KERNELS
from bitexp.quant.activations.absmax import absmax_codes
from bitexp.quant.backend import FusedLinear, Product
from bitexp.quant.product import float_product, scaled_product
from bitexp.quant.spec import ConvArgs, Geometry


class Reference:
    """Keeps int8 codes and multiplies them as fp32 integers. The oracle of every other kernel."""

    product: Product = staticmethod(float_product)
    fused: FusedLinear | None = None

    def unavailable(self, device: str) -> str | None:
        return None

    def prepare(self, codes: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return codes, scale

    def linear(
        self,
        x: Tensor,
        prepared: tuple[Tensor, Tensor],
        bias: Tensor | None,
        act_qmax: int,
        scaled_bias: bool,
    ) -> Tensor:
        return self._product(x, prepared, bias, act_qmax, scaled_bias, None)

    def conv2d(
        self,
        x: Tensor,
        prepared: tuple[Tensor, Tensor],
        bias: Tensor | None,
        act_qmax: int,
        scaled_bias: bool,
        conv: ConvArgs,
    ) -> Tensor:
        return self._product(x, prepared, bias, act_qmax, scaled_bias, conv)

    def _product(
        self,
        x: Tensor,
        prepared: tuple[Tensor, Tensor],
        bias: Tensor | None,
        act_qmax: int,
        scaled_bias: bool,
        conv: ConvArgs | None,
    ) -> Tensor:
        codes, scale = prepared
        x_scale = None
        if act_qmax:
            x, x_scale = absmax_codes(x, act_qmax, Geometry(conv).scale_dims)
        return scaled_product(x, x_scale, codes, scale, bias, conv, scaled_bias, self.product)


KERNELS.register("reference")(Reference())
