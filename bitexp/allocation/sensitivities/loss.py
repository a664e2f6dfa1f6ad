"""The loss itself."""

from __future__ import annotations

from bitexp.allocation.network import Network
from bitexp.allocation.program import Table
from bitexp.allocation.sensitivities.base import SENSITIVITIES, Sensitivity, Told


@SENSITIVITIES.register("loss")
class MeasuredLoss(Sensitivity):
    """The increase of the loss where one layer alone is quantized (arXiv 2006.10518, section 3.4)."""

    share = 1.0

    def __call__(self, network: Network, told: Told = lambda _: None) -> Table:
        full, of = network.loss(), len(network.layers)

        def increase(place: int, width: int) -> float:
            told(f"layer {place + 1} of {of} at {network.bits[width]:g} bits")
            return network.loss({place: width}) - full

        return network.table(increase)
