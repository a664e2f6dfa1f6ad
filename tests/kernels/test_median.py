"""The compiled median against torch's: the same bits, at every length and in every order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn

from bitexp.kernels import KERNELS
from bitexp.kernels.cpu.training import LONG, CpuBackend
from bitexp.quant.backend import TORCH
from bitexp.quant.layers import BitLinear
from bitexp.quant.parts import WEIGHTS

pytestmark = pytest.mark.skipif(KERNELS.get("cpu").unavailable("cpu") is not None, reason="no numba")

KINDS = {
    "normal": torch.randn,
    "tiny": lambda n: torch.randn(n) * 1e-40,
    "huge": lambda n: torch.randn(n) * 1e38,
    "zeros": torch.zeros,
    "equal": lambda n: torch.full((n,), -0.3),
    "few values": lambda n: torch.randint(-3, 4, (n,)).float(),
    "sorted": lambda n: torch.arange(n).float(),
    "infinities": lambda n: torch.where(torch.rand(n) < 0.7, torch.inf, torch.randn(n)),
    "a wave that the sample misses": lambda n: (torch.arange(n) % max(n // 4096, 1)).float(),
    "all but one in a thousand zero": lambda n: (torch.rand(n) < 1e-3).float(),
}

LENGTHS = [1, 2, 3, 15, 16, 17, 4095, 4096, 16383, 16384, 16385, 40_001, 2**17]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def median(weights: Tensor) -> Any:
    """As the compiled function gives it."""
    from bitexp.kernels.cpu.median import median

    bits = weights.contiguous().flatten().view(torch.int32).numpy()
    return np.int32(median(bits)).view(np.float32)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_has_the_bits_of_torch(kind: str, length: int) -> None:
    weights = KINDS[kind](length)
    for w in (weights, weights[torch.randperm(length)]):
        assert median(w) == w.abs().median().item()


@given(hnp.arrays(np.float32, st.integers(1, 300), elements=st.floats(width=32, allow_nan=False)))
def test_it_has_the_bits_of_torch_on_any_numbers(array: np.ndarray[Any, Any]) -> None:
    weights = torch.from_numpy(array)
    assert median(weights) == weights.abs().median().item()


@pytest.mark.parametrize("length", LENGTHS)
def test_one_nan_makes_it_nan_as_torch_does(length: int) -> None:
    for place in {0, length // 2, length - 1}:
        for nan in (torch.nan, -torch.nan):
            weights = torch.randn(length)
            weights[place] = nan
            assert weights.abs().median().isnan()
            assert np.isnan(median(weights))


@pytest.mark.parametrize("shape", [(1, LONG), (3, LONG + 1), (5, LONG - 1), (4, 7), (1, 5 * LONG)])
def test_rows_are_taken_one_by_one(shape: tuple[int, int]) -> None:
    for rows in (torch.randn(shape), torch.randn(shape[::-1]).t(), torch.randn(shape).double()):
        assert torch.equal(CpuBackend().abs_median(rows), TORCH.abs_median(rows))


def test_transforms_see_through_it() -> None:
    rows = torch.randn(3, 2, LONG)
    expected = torch.stack([TORCH.abs_median(r) for r in rows])
    assert torch.equal(torch.vmap(CpuBackend().abs_median)(rows), expected)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("bad", [0.0, torch.nan, torch.inf])
def test_a_quantizer_gives_the_same_codes_with_it(make_quantizer: Any, granularity: str, bad: float) -> None:
    weight = torch.randn(8, LONG)
    weight[3, 5] = bad
    weight[4] = 0
    linear = nn.Linear(LONG, 8)
    linear.weight.data.copy_(weight)
    quantizer = make_quantizer("ternary_median", weights={"granularity": granularity})
    plain, fast = (BitLinear(linear, quantizer) for _ in range(2))
    fast.set_backend(CpuBackend())
    for ours, theirs in zip(fast.quantized()[:2], plain.quantized()[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    assert type(fast.parts.weights) is WEIGHTS.get("ternary_median")
