"""Second derivatives of the loss."""

from __future__ import annotations

import numpy as np

from bitexp.allocation.hessian import traces
from bitexp.allocation.network import Network
from bitexp.allocation.program import Table
from bitexp.allocation.sensitivities.base import SENSITIVITIES, Sensitivity, Told


@SENSITIVITIES.register("trace")
class HessianTrace(Sensitivity):
    """`tr(H) / n |Q(W) - W|^2` for the n weights of a layer (HAWQ-V3, arXiv 2011.10680, section 3.3).

    Half of it is the expected increase of the loss, to second order, if the errors of weights are
    independent. A trace below zero, far from a minimum, counts as zero.

    Args:
        draws: of random signs for the estimate, at most.
    """

    share = 0.5

    def __init__(self, *, draws: int = 50) -> None:
        self.draws = draws

    def __call__(self, network: Network, told: Told = lambda _: None) -> Table:
        weights = {layer.name: layer.plain.get_parameter("weight") for layer in network.layers}
        found = traces(
            network.losses(), weights, self.draws, told=lambda done: told(f"{done} of {self.draws} draws")
        )
        mean = [max(found[name].mean, 0.0) / weight.numel() for name, weight in weights.items()]
        return np.array(mean)[:, None] * network.distances()
