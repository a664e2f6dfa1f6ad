"""The uniform levels with the least squared error, against the optima for normal weights and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from bitexp.quant.weights.uniform_mse import GAUSSIAN, UniformMse


def normal_error(scale: float, levels: np.ndarray) -> float:
    """The mean squared error of uniform levels of a standard normal variable, in closed form."""
    values = scale * levels
    ends = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])
    density = norm.pdf(ends)
    share, first = np.diff(norm.cdf(ends)), -np.diff(density)
    second = share - np.diff(np.where(np.isfinite(ends), ends, 0) * density)
    return float((second - 2 * values * first + values**2 * share).sum())


MAX = {1: 0.3634, 2: 0.1188, 3: 0.03744, 4: 0.01154, 5: 0.003495}
"""J. Max, Quantizing for minimum distortion (1960), table II, for 2 to 32 levels."""


@pytest.mark.parametrize("bits", GAUSSIAN)
def test_the_error_of_normal_weights_is_the_least_that_uniform_levels_have(bits: float) -> None:
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    part = UniformMse(weight, bits=bits, granularity="tensor")
    levels = np.arange(part.levels.low, part.levels.high + 1, part.levels.stride)
    best = minimize_scalar(normal_error, bounds=(1e-3, 3), args=(levels,), method="bounded")
    assert best.fun == pytest.approx(MAX.get(int(bits) if bits != 1.58 else 0, best.fun), rel=1e-3)
    assert best.x * part.levels.high == pytest.approx(GAUSSIAN[bits], rel=4e-3)
    error = float((part.quantize(weight).dequantized() - weight).square().mean())
    assert error == pytest.approx(best.fun, rel=0.02)


@pytest.mark.parametrize("bits", [1, 1.58, 2, 3, 4, 8])
def test_no_scale_is_much_better_for_other_weights(bits: float) -> None:
    """Of long tails, few weights, and none."""
    generator = torch.Generator().manual_seed(0)
    tails = torch.randn(8, 200, generator=generator) ** 3
    few = torch.zeros(8, 200)
    few[:, :5] = torch.randn(8, 5, generator=generator)
    weight = torch.cat([tails, few])
    part = UniformMse(weight, bits=bits)
    error = (part.quantize(weight).dequantized() - weight).square().sum(-1)
    largest = weight.abs().amax(-1, keepdim=True) / part.levels.high
    tried = [part.codes(weight, largest * s) * largest * s for s in np.geomspace(0.02, 1.5, 200)]
    least = torch.stack([(values - weight).square().sum(-1) for values in tried]).amin(0)
    assert bool((error <= 1.15 * least + 1e-4 * weight.square().sum(-1)).all())
    assert not torch.isnan(UniformMse(0 * weight, bits=bits).quantize(0 * weight).dequantized()).any()


@pytest.mark.parametrize("bits", [0, 1.5, 9])
def test_other_bits_are_refused(bits: float) -> None:
    with pytest.raises(ValueError, match=r"must be 1\.58, or a whole number from 1 to 8"):
        UniformMse(torch.ones(2, 2), bits=bits)
