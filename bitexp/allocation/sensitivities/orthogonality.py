"""How little of a layer is in others."""

from __future__ import annotations

from bitexp.allocation.network import Network
from bitexp.allocation.orthogonality import importance, orthogonality
from bitexp.allocation.program import Table
from bitexp.allocation.sensitivities.base import SENSITIVITIES, Sensitivity, Told

MOST = 64
"""Samples that are looked at: outputs of a layer are compared sample by sample."""


@SENSITIVITIES.register("orthogonality")
class Orthogonality(Sensitivity):
    """Less the bits times what one is worth by OMPQ (arXiv 2109.07865): no weight is looked at.

    Args:
        beta: how strongly redundancy counts.
    """

    def __init__(self, *, beta: float = 1.0) -> None:
        self.beta = beta

    def __call__(self, network: Network, told: Told = lambda _: None) -> Table:
        worth = importance(orthogonality([y[:MOST] for y in network.outputs()]), self.beta)
        return network.table(lambda place, width: -network.bits[width] * float(worth[place]))
