"""How far weights are moved."""

from __future__ import annotations

from bitexp.allocation.network import Network
from bitexp.allocation.program import Table
from bitexp.allocation.sensitivities.base import SENSITIVITIES, Sensitivity, Told


@SENSITIVITIES.register("error")
class Error(Sensitivity):
    """`|Q(W) - W|^2`, as if every weight of the network mattered alike."""

    def __call__(self, network: Network, told: Told = lambda _: None) -> Table:
        return network.distances()
