"""Frozen linear layers whose norm is taken in the launch that quantizes: the fastest form.

The norm of `FrozenLayer` has the bits of training. Fused, its sums are added in another
order: a code in a million may differ by one. Use it where speed counts for more than equal bits.
"""

from __future__ import annotations

from torch import Tensor, nn

from bitexp.deploy.frozen import FrozenLayer
from bitexp.kernels.gpu.layout import Packed
from bitexp.quant.checks import check_input
from bitexp.quant.modes import no_autocast, recorded, result_dtype
from bitexp.quant.spec import LayerSpec


class FusedLinear(FrozenLayer):
    """A frozen linear layer with kernel `triton` that takes floats of any dtype and answers in it.

    Where the gradient of its input is wanted, it goes the way of other frozen layers.
    """

    def forward(self, input: Tensor) -> Tensor:
        if recorded(input):
            return super().forward(input)
        check_input(input)
        options = (self.prepared, self.bias, self.spec, self.spec.norm, result_dtype(input))
        with no_autocast(input):
            y: Tensor = self.kernel.forward(input, *options)  # type: ignore[call-arg]
        return y


def plain(spec: LayerSpec) -> bool:
    """Whether nothing but the norm stands between a layer's input and codes that the kernel makes."""
    parts = (spec.transform, spec.sparsifier)
    return spec.absmax is not None and parts == (None, None) and spec.output_norm == "none"


def fuse_norms(model: nn.Module) -> list[str]:
    """Makes every frozen linear layer that can be fused a fused one, in place; returns their names."""
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, FrozenLayer) and isinstance(module.prepared, Packed) and plain(module.spec)
    }
    for module in found.values():
        module.__class__ = FusedLinear
    return list(found)
