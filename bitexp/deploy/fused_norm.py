"""Frozen linear layers whose norm is taken in the launch that quantizes: the fastest form.

The norm of `FrozenLayer` is torch's own, with the bits of training. Fused, its sums are added in another
order: a code in a million may differ by one. Use it where speed counts for more than equal bits.
"""

from __future__ import annotations

from torch import Tensor, nn

from bitexp.deploy.frozen import FrozenLayer, put_twins
from bitexp.kernels.gpu.layout import Packed
from bitexp.quant.modes import result_dtype
from bitexp.quant.spec import LayerSpec


class FusedLinear(nn.Module):
    """A frozen linear layer with kernel `triton` that takes floats of any dtype and answers in it."""

    def __init__(self, layer: FrozenLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer, spec = self.layer, self.layer.spec
        options = (layer.prepared, layer.bias, spec, spec.norm, result_dtype(x))
        y: Tensor = layer.kernel.forward(x, *options)  # type: ignore[call-arg]
        return y


def plain(spec: LayerSpec) -> bool:
    """Whether nothing but the norm stands between a layer's input and codes that the kernel makes."""
    parts = (spec.transform, spec.sparsifier)
    return spec.absmax is not None and parts == (None, None) and spec.output_norm == "none"


def fuse_norms(model: nn.Module) -> list[str]:
    """Replaces, in place, every frozen linear layer that can be fused; returns their names.

    Raises:
        ValueError: the model is itself such a layer.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, FrozenLayer) and isinstance(module.prepared, Packed) and plain(module.spec)
    }
    if "" in found:
        raise ValueError("the model is a single layer and cannot be replaced in place: wrap it in a module")
    put_twins(model, {id(module): FusedLinear(module) for module in found.values()})
    return list(found)
