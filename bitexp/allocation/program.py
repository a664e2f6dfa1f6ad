"""Which width each layer gets: an integer program, solved exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]
"""A number for each layer and each width, `[layers, widths]`."""

PRECISION = 1e6
"""The solver takes differences below 1e-6 for none: sums are brought to this size before."""


class Unattainable(ValueError):
    """A budget that no choice of widths can keep; `name` says which, `least` what can be attained."""

    def __init__(self, name: str, limit: float, least: float) -> None:
        super().__init__(f"{name} cannot be at most {limit:g}: the least is {least:g}")
        self.name, self.limit, self.least = name, limit, least


def allocate(
    sensitivity: Table,
    costs: Mapping[str, Table],
    limits: Mapping[str, float],
    ties: Sequence[Sequence[int]] = (),
) -> list[int]:
    """The width of each layer, as a column of the tables.

    Minimizes the sum of the sensitivities with every sum of costs up to its limit, over one width for each
    layer (HAWQ-V3, arXiv 2011.10680, eq. 10).

    Args:
        sensitivity: what a layer costs in quality at a width; any numbers of which less is better.
        costs: by name, what it takes. limits: of some of them or all.
        ties: layers by their rows that get the same width.

    Raises:
        Unattainable: a limit below the least sum; or several that no allocation keeps together.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    groups = tied(len(sensitivity), ties)
    value = grouped(sensitivity, groups)
    spent = {name: grouped(costs[name], groups) for name in limits}
    for name, table in spent.items():
        if limits[name] < (least := float(table.min(1).sum())):
            raise Unattainable(name, limits[name], least)
    count, widths = value.shape
    one_each = np.kron(np.eye(count), np.ones(widths))
    constraints = [LinearConstraint(one_each, 1, 1)]
    for name, table in spent.items():
        unit = float(np.abs(table).max()) or 1.0
        row = table.ravel() / unit * PRECISION
        constraints.append(LinearConstraint(row[None], -np.inf, limits[name] / unit * PRECISION))
    value = value - value.min(1, keepdims=True)
    objective = value.ravel() / (float(value.max()) or 1.0) * PRECISION
    solved = milp(
        objective,
        integrality=np.ones(count * widths),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0.0},
    )
    if solved.x is None:
        name = next(iter(limits))
        others = {other: limit for other, limit in limits.items() if other != name}
        least = float(cheapest(spent, name, others, groups, costs, ties))
        raise Unattainable(name, limits[name], least)
    chosen = solved.x.reshape(count, widths).argmax(1)
    return [int(chosen[group]) for group in groups]


def cheapest(
    spent: Mapping[str, Table],
    name: str,
    others: Mapping[str, float],
    groups: Sequence[int],
    costs: Mapping[str, Table],
    ties: Sequence[Sequence[int]],
) -> float:
    """The least sum of one cost where the others keep their limits."""
    widths = allocate(costs[name], costs, others, ties)
    return total(costs[name], widths)


def total(table: Table, chosen: Sequence[int]) -> float:
    """The sum over layers at the widths that were chosen."""
    return float(table[np.arange(len(table)), list(chosen)].sum())


def tied(count: int, ties: Sequence[Sequence[int]]) -> list[int]:
    """The group of each layer, numbered as they come; layers that share one with a third are one group."""
    leader = list(range(count))

    def find(layer: int) -> int:
        return layer if leader[layer] == layer else find(leader[layer])

    for first, *others in ties:
        for other in others:
            low, high = sorted((find(first), find(other)))
            leader[high] = low
    heads = sorted({find(layer) for layer in range(count)})
    return [heads.index(find(layer)) for layer in range(count)]


def grouped(table: Table, groups: Sequence[int]) -> Table:
    """Sums over the layers of each group."""
    sums = np.zeros((max(groups, default=-1) + 1, table.shape[1]))
    np.add.at(sums, list(groups), table)
    return sums
