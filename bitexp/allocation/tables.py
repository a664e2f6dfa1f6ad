"""What an allocation shows: its layers, and the network beside uniform widths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bitexp.allocation.network import Network
from bitexp.allocation.program import Table as Numbers
from bitexp.allocation.program import total
from bitexp.allocation.sensitivities import Sensitivity
from bitexp.common.format import amount, energy_text, size
from bitexp.report.columns import Column, Table, numeric, word


@dataclass(frozen=True)
class LayerRow:
    """A layer as it is shown."""

    name: str
    weights: int
    sensitivities: Sequence[float]
    bits: float


@dataclass(frozen=True)
class NetworkRow:
    """The network at some widths. `predicted` is what the sensitivities say of its loss."""

    what: str
    bits: float
    bytes: float
    energy: float
    predicted: float | None
    measured: float


def layer_table(network: Network, table: Numbers, chosen: Sequence[int]) -> Table:
    """The layers in the order of the network, with the width that each got."""
    rows = tuple(
        LayerRow(layer.name, layer.weights, table[place].tolist(), network.bits[chosen[place]])
        for place, layer in enumerate(network.layers)
    )

    def sensitivity(width: int) -> Column:
        title = f"at {network.bits[width]:g} bits"
        return numeric(title, title, lambda row: row.sensitivities[width], ".3g")

    columns = (
        word("layer", "layer", lambda row: row.name),
        numeric("weights", "weights", lambda row: row.weights, amount),
        *(sensitivity(width) for width in range(len(network.bits))),
        numeric("bits chosen", "bits", lambda row: row.bits, "g"),
    )
    return Table("Layers", columns, rows)


def network_rows(
    network: Network,
    costs: Mapping[str, Numbers],
    table: Numbers,
    chosen: Sequence[int],
    measure: Sensitivity,
) -> Iterator[NetworkRow]:
    """The allocation, then each width in all layers; losses are measured here.

    Args:
        costs: by name. table: the sensitivities, by `measure`.
    """
    full, weights = network.loss(), [layer.weights for layer in network.layers]
    uniform = {f"{bits:g} bits": [width] * len(weights) for width, bits in enumerate(network.bits)}
    for what, widths in {"as allocated": list(chosen), **uniform}.items():
        increase = measure.predicted(table, widths)
        bits = sum(n * network.bits[w] for n, w in zip(weights, widths, strict=True)) / sum(weights)
        yield NetworkRow(
            what,
            bits,
            total(costs["bytes"], widths),
            total(costs["energy"], widths),
            None if increase is None else full + increase,
            network.loss(dict(enumerate(widths))),
        )


def network_table(rows: Sequence[NetworkRow]) -> Table:
    """The allocation beside uniform widths and full precision."""
    columns = (
        word("weights", "weights", lambda row: row.what),
        numeric("bits per weight", "weight_bits", lambda row: row.bits, ".3g"),
        numeric("body", "body_bytes", lambda row: row.bytes, size),
        numeric("its energy", "body_energy", lambda row: row.energy, energy_text),
        numeric("loss predicted", "predicted_loss", lambda row: row.predicted, ".4f"),
        numeric("measured", "measured_loss", lambda row: row.measured, ".4f"),
    )
    return Table("Network", columns, tuple(rows))
