"""What each layer takes at each width: bytes as packed, energy, and operations on bits."""

from __future__ import annotations

from collections.abc import Callable

from bitexp.allocation.network import Layer
from bitexp.deploy.cost import bits, operations_of
from bitexp.deploy.frozen import freeze_layer
from bitexp.kernels.reference import Reference
from bitexp.quant.layers import QuantizedLayer
from bitexp.report.energy import joules


def packed_bytes(layer: QuantizedLayer, layout: str) -> float:
    """Bytes of a layer in the packed file, but for its bias: codes, scales, and what else it needs."""
    state = freeze_layer(layer, layout, Reference()).state_dict()
    return float(sum(tensor.nbytes for name, tensor in state.items() if name != "bias"))


def energy(layer: Layer, twin: QuantizedLayer) -> float:
    """Joules for one sample, estimated as reports do."""
    return joules(operations_of(twin, layer.inputs, layer.outputs))


def bit_operations(layer: Layer, twin: QuantizedLayer) -> float:
    """BOPS for one sample: multiply-accumulates times bits of weights times bits of activations (HAWQ-V3)."""
    weight_bits, activation_bits = bits(twin)
    macs = layer.outputs * layer.weights / len(twin.weight)
    return macs * weight_bits * activation_bits


Cost = Callable[[Layer, QuantizedLayer], float]


def costs(layout: str) -> dict[str, Cost]:
    """By name, what a layer takes at a width; `layout` is that of the packed file."""
    return {
        "bytes": lambda layer, twin: packed_bytes(twin, layout),
        "energy": energy,
        "bops": bit_operations,
    }
