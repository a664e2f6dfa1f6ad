"""Allocations: HAWQ-V3's published ones from its published numbers, and small programs by trying all."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitexp.allocation.program import Unattainable, allocate, total

# ILP.ipynb of github.com/Zhen-Dong/HAWQ, ResNet-18 without its first and last layer
TRACE = np.array([
    0.06857826, 0.03162379, 0.03298575, 0.01205663, 0.02222431, 0.00596336, 0.06931772, 0.00807129,
    0.00372905, 0.00530698, 0.00209011, 0.00737569, 0.00210454, 0.00151197, 0.00158041, 0.00078146,
    0.00451841, 0.00098745, 0.00072944,
])  # fmt: skip
"""tr(H) / n of each layer."""
ERROR_8 = np.array([
    0.0235, 0.0125, 0.0102, 0.0082, 0.0145, 0.0344, 0.0023, 0.0287, 0.0148, 0.0333, 0.0682, 0.0027,
    0.0448, 0.0336, 0.0576, 0.1130, 0.0102, 0.0947, 0.0532,
])  # fmt: skip
ERROR_4 = np.array([
    6.7430, 3.9691, 3.3281, 2.6796, 4.7277, 10.5966, 0.6827, 9.0942, 4.8857, 10.7599, 21.7546, 0.8603,
    14.5324, 10.9651, 18.7706, 36.4044, 3.1572, 29.6994, 17.4016,
])  # fmt: skip
"""|Q(W) - W|^2 at 4 bits."""
WEIGHTS = np.array([
    36864, 36864, 36864, 36864, 73728, 147456, 8192, 147456, 147456, 294912, 589824, 32768, 589824,
    589824, 1179648, 2359296, 131072, 2359296, 2359296,
])  # fmt: skip
BOPS = np.array([
    115605504, 115605504, 115605504, 115605504, 57802752, 115605504, 6422528, 115605504, 115605504,
    57802752, 115605504, 6422528, 115605504, 115605504, 57802752, 115605504, 6422528, 115605504,
    115605504,
])  # fmt: skip
LATENCY_4 = np.array([
    0.21094404, 0.21092674, 0.21104113, 0.21086851, 0.13642465, 0.19167506, 0.02532183, 0.19148203,
    0.19142914, 0.11395316, 0.20556011, 0.01917474, 0.20566918, 0.20566509, 0.13185102, 0.22287786,
    0.01790088, 0.22304611, 0.22286099,
])  # fmt: skip
LATENCY_8 = np.array([
    0.36189111, 0.36211718, 0.31141909, 0.30454471, 0.19184896, 0.38948934, 0.0334169, 0.38904905,
    0.3892859, 0.19134735, 0.34307431, 0.02802354, 0.34313329, 0.34310756, 0.21117103, 0.37376585,
    0.02896843, 0.37398187, 0.37405185,
])  # fmt: skip
COSTS = {
    "size": np.stack([WEIGHTS / 2, WEIGHTS], 1),
    "bops": np.stack([BOPS / 64, BOPS / 16], 1),
    "latency": np.stack([LATENCY_4, LATENCY_8], 1),
}
TIES = [(4, 6), (9, 11), (14, 16)]
"""The first convolution of a block and that of its shortcut."""
PUBLISHED = {  # bit_config.py of the same repository, bit_config_resnet18_*
    ("size", 0.75): "8888888888888488884",
    ("size", 0.5): "8888888888888884844",
    ("size", 0.25): "8888888888888844444",
    ("bops", 0.75): "8888888848888484884",
    ("bops", 0.5): "8884888848884444444",
    ("bops", 0.25): "8884848444444444444",
    ("latency", 0.75): "8888888848888484884",
    ("latency", 0.5): "8888848848884484844",
    ("latency", 0.25): "8884848444444444444",
}


@pytest.mark.parametrize(("name", "share"), PUBLISHED)
def test_the_published_allocations_of_resnet_18(name: str, share: float) -> None:
    least, most = COSTS[name].sum(0)
    sensitivity = TRACE[:, None] * np.stack([ERROR_4, ERROR_8], 1)
    chosen = allocate(sensitivity, COSTS, {name: least + share * (most - least)}, TIES)
    assert "".join("48"[width] for width in chosen) == PUBLISHED[name, share]


@st.composite
def programs(draw: st.DrawFn) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, float], list[list[int]]]:
    layers, widths = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    numbers = st.lists(st.integers(0, 50), min_size=layers * widths, max_size=layers * widths)
    tables = [np.array(draw(numbers), float).reshape(layers, widths) for _ in range(3)]
    # units far apart, as those of losses, bytes and joules are
    sensitivity, bytes_, energy = tables[0] * 1e-7, tables[1] * 1e5, tables[2] * 1e-12
    limits = {"size": draw(st.integers(0, 200)) * 1e5, "energy": draw(st.integers(0, 200)) * 1e-12}
    ties = [draw(st.lists(st.integers(0, layers - 1), min_size=2, max_size=3))] * draw(st.booleans())
    return sensitivity, {"size": bytes_, "energy": energy}, limits, ties


@given(programs())
def test_none_is_better_within_the_limits(
    program: tuple[np.ndarray, dict[str, np.ndarray], dict[str, float], list[list[int]]],
) -> None:
    sensitivity, costs, limits, ties = program
    layers, widths = sensitivity.shape
    fitting = [
        chosen
        for chosen in itertools.product(range(widths), repeat=layers)
        if all(total(costs[name], chosen) <= limit * (1 + 1e-9) for name, limit in limits.items())
        and all(len({chosen[layer] for layer in tie}) == 1 for tie in ties)
    ]
    if not fitting:
        with pytest.raises(Unattainable):
            allocate(sensitivity, costs, limits, ties)
        return
    chosen = allocate(sensitivity, costs, limits, ties)
    assert tuple(chosen) in fitting
    best = min(total(sensitivity, other) for other in fitting)
    assert total(sensitivity, chosen) == pytest.approx(best, rel=1e-9, abs=1e-16)


def test_a_budget_that_cannot_be_kept_says_what_can() -> None:
    with pytest.raises(Unattainable) as below:
        allocate(COSTS["size"], COSTS, {"size": 1000})
    assert (below.value.name, below.value.least) == ("size", COSTS["size"][:, 0].sum())
    costs = {"size": np.array([[1.0, 5.0]]), "energy": np.array([[5.0, 1.0]])}
    with pytest.raises(Unattainable) as together:  # each could be kept alone
        allocate(np.zeros((1, 2)), costs, {"size": 2, "energy": 2})
    assert (together.value.name, together.value.least) == ("size", 5)
