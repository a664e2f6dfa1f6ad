"""Signs around the mean."""

from __future__ import annotations

from torch import Tensor

from bitexp.quant.levels import BINARY
from bitexp.quant.parts import WEIGHTS, WeightQuantizer
from bitexp.quant.product import Quantized


@WEIGHTS.register("binary")
class Binary(WeightQuantizer):
    """Signs around the mean, sign(0) = -1; scale mean|W| (BitNet, arXiv 2310.11453, eq. 1-3 and 11)."""

    levels = BINARY

    def scale(self, rows: Tensor) -> Tensor:
        return self.backend.abs_means(rows)

    def codes(self, rows: Tensor, scale: Tensor) -> Tensor:
        return self.backend.signs(rows, self.backend.means(rows))

    def at_once(self, weight: Tensor) -> Quantized:
        return Quantized(*self.backend.signs_by_means(weight, self.scale_shape(weight)))
