"""The loss itself."""

from __future__ import annotations

import numpy as np

from bitexp.allocation.network import Network
from bitexp.allocation.program import Table
from bitexp.allocation.sensitivities.base import SENSITIVITIES, Sensitivity, Told

NEXT = 1e-6
"""What the squared error counts, beside the largest increase of the loss."""


@SENSITIVITIES.register("loss")
class MeasuredLoss(Sensitivity):
    """The increase of the loss where one layer alone is quantized (arXiv 2006.10518, section 3.4).

    Where it falls with fewer bits, or below zero, that is the noise of the samples, which a program would
    make the most of: a width is taken to cost as much as any wider one. Equal ones differ by their squared
    errors.
    """

    share = 1.0

    def __call__(self, network: Network, told: Told = lambda _: None) -> Table:
        full, of = network.loss(), len(network.layers)

        def increase(place: int, width: int) -> float:
            told(f"layer {place + 1} of {of} at {network.bits[width]:g} bits")
            return network.loss({place: width}) - full

        return falling(network.table(increase), network.distances())


def falling(increases: Table, distances: Table) -> Table:
    """Increases of the loss that fall from width to wider width, equal ones by their squared errors."""
    never_below_wider = np.maximum.accumulate(increases.clip(0)[:, ::-1], 1)[:, ::-1]
    return np.asarray(never_below_wider + NEXT * never_below_wider.max() * distances / distances.max())
