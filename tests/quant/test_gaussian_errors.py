"""The squared error that each data type makes of normal weights, in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm

from bitexp.quant.gaussian import CLIPS
from bitexp.quant.options import LayerOptions
from bitexp.quant.spec import Part

MEAN, MEDIAN = math.sqrt(2 / math.pi), float(norm.ppf(0.75))
"""Of |w|."""
BEYOND = float(norm.pdf(0.7 * MEAN) / norm.sf(0.7 * MEAN))
"""The mean of |w| above 0.7 of the mean of all."""


def error(values: Sequence[float], ends: Sequence[float] | None = None) -> float:
    """The mean squared error where weights between two ends become a value; by default the nearest one."""
    v = np.array(values)
    between = (v[1:] + v[:-1]) / 2 if ends is None else np.array(ends)
    edges = np.concatenate([[-np.inf], between, [np.inf]])
    share, first = np.diff(norm.cdf(edges)), -np.diff(norm.pdf(edges))
    second = share - np.diff(np.where(np.isfinite(edges), edges, 0) * norm.pdf(edges))
    return float((second - 2 * v * first + v**2 * share).sum())


def ternary(scale: float) -> list[float]:
    return [-scale, 0.0, scale]


def odd(bits: int, highest: float) -> list[float]:
    return [highest * k / (2**bits - 1) for k in range(1 - 2**bits, 2**bits, 2)]


SIGNS = error([-MEAN, MEAN])
CASES: list[tuple[str, dict[str, Any], float]] = [
    ("binary", {}, SIGNS),
    ("sign", {}, SIGNS),
    ("elastic_binary", {}, SIGNS),
    ("ternary_mean", {}, error(ternary(MEAN))),
    ("ternary_median", {}, error(ternary(MEDIAN))),
    ("stochastic_ternary", {}, error(ternary(MEAN))),
    ("tequila", {}, error(ternary(MEAN))),
    ("fixed", {"bits": 1.58}, error(ternary(MEAN))),
    ("twn", {}, error(ternary(BEYOND), [-0.7 * MEAN, 0.7 * MEAN])),
    ("lsq", {"bits": 2}, error([2 * MEAN * k for k in range(-2, 2)])),
    ("lsq", {"bits": 4}, error([2 * MEAN / math.sqrt(7) * k for k in range(-8, 8)])),
    ("sawb", {"bits": 2}, error(odd(2, 3.12 - 2.064 * MEAN))),
    *[("quest", {"bits": bits}, error(odd(bits, CLIPS[bits]))) for bits in (1, 2, 3, 4, 6)],
]


def test_the_form_itself() -> None:
    """1 - 2 / pi for signs; four and eight uniform levels as in table II of J. Max, 1960."""
    assert pytest.approx(1 - 2 / math.pi) == SIGNS
    assert error(odd(2, 1.5 * 0.9957)) == pytest.approx(0.1188, abs=5e-5)
    assert error(odd(3, 3.5 * 0.5860)) == pytest.approx(0.03744, abs=5e-6)


@pytest.mark.parametrize(("name", "options", "expected"), CASES)
def test_the_error_of_normal_weights(name: str, options: dict[str, Any], expected: float) -> None:
    weight = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    part = LayerOptions(Part(name, options)).parts(weight).weights
    found = part.quantize(weight).dequantized()
    assert float((found - weight).square().mean()) == pytest.approx(expected, rel=0.02)
