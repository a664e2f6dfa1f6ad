"""The median of |W| has the bits of torch's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitexp.kernels.gpu.scale import FEW_ROWS, abs_median


@settings(max_examples=10)
@given(
    rows=st.integers(1, 3),
    size=st.one_of(st.integers(1, 70), st.integers(2040, 2060)),
    kind=st.sampled_from(["normal", "few values", "zero", "tiny", "infinite", "wide"]),
    seed=st.integers(0, 1000),
)
def test_it_is_torch_s(device: str, rows: int, size: int, kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    w = torch.randn(rows, size, device=device)
    if kind == "few values":
        w = w.round()
    elif kind == "zero":
        w = w * 0
    elif kind == "tiny":
        w = w * 1e-42
    elif kind == "infinite":
        w = w / (w > 0)
    elif kind == "wide":
        w = w.sign() * torch.exp(20 * w)
    assert torch.equal(abs_median(w), w.abs().median(-1, keepdim=True).values)


def test_a_nan_makes_its_row_nan(device: str) -> None:
    w = torch.randn(3, 9, device=device)
    w[1, 4] = float("nan")
    median = abs_median(w)
    assert median.isnan().flatten().tolist() == [False, True, False]
    assert torch.equal(median[::2], w[::2].abs().median(-1, keepdim=True).values)


def test_many_rows_go_by_torch(device: str) -> None:
    w = torch.randn(FEW_ROWS + 1, 5, device=device)
    assert torch.equal(abs_median(w), w.abs().median(-1, keepdim=True).values)


def test_a_row_that_int32_cannot_count_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        abs_median(torch.empty(1, 2**31, device="meta"))


@pytest.mark.gpu
def test_a_large_tensor(device: str) -> None:
    w = torch.randn(1, 17_000_001, device=device)
    assert torch.equal(abs_median(w), w.abs().median(-1, keepdim=True).values)
