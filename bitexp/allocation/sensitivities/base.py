"""The registry of sensitivities, and what every one is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bitexp.allocation.network import Network
from bitexp.allocation.program import Table, total
from bitexp.common.registry import Registry

Told = Callable[[str], None]
"""Takes a word about what is being measured."""

SENSITIVITIES: Registry[type[Sensitivity]] = Registry("sensitivity")


class Sensitivity:
    """What quality costs, layer by layer and width by width; it adds up over layers, or is taken to."""

    share: float | None = None
    """The increase of the loss for each unit of it; None where it says nothing about that."""

    def __call__(self, network: Network, told: Told = lambda _: None) -> Table:
        """A number for each layer and each width; less is better.

        Args:
            told: is called as the work goes on.
        """
        raise NotImplementedError

    def predicted(self, table: Table, chosen: Sequence[int]) -> float | None:
        """By how much the loss increases with these widths; None where that is not said."""
        return None if self.share is None else self.share * total(table, chosen)
