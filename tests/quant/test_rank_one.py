"""OneBit's decomposition of trained weights against the singular values of torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bitexp.quant import quantize
from bitexp.quant.layers import quantized_layers
from bitexp.quant.rank_one import rank_one


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_it_is_the_best_approximation_of_rank_one() -> None:
    """Eckart and Young: no other has a smaller squared error."""
    weight = drawn(40, 30)
    rows, columns = rank_one(weight)
    left, values, right = torch.linalg.svd(weight.abs())
    best = values[0] * left[:, :1] * right[:1]
    torch.testing.assert_close(torch.outer(rows, columns), best, rtol=1e-5, atol=1e-6)
    assert columns.mean().item() == pytest.approx(1)
    assert (rows > 0).all()
    assert (columns > 0).all()


def test_weights_of_rank_one_are_kept_exactly_by_signs_and_factors() -> None:
    rows, columns = drawn(12).exp(), drawn(1, 7).exp()[0]
    layer = nn.Linear(7, 12, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.outer(rows, columns) * drawn(12, 7).sign())
    model = nn.Sequential(layer)
    inputs = drawn(5, 7)
    expected = model(inputs)
    weights = {"name": "sign", "scale": "learned", "granularity": "channel", "init": "svid"}
    quantize(model, {"weights": weights, "transform": {"name": "columns", "init": "svid"}, "norm": "none"})
    torch.testing.assert_close(model(inputs), expected, rtol=1e-4, atol=1e-4)


def test_convolutions_and_zeros_have_factors_too() -> None:
    rows, columns = rank_one(drawn(4, 3, 3, 3))
    assert (len(rows), len(columns)) == (4, 3)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2))
    quantize(model, "onebit_svid")
    ((_, layer),) = quantized_layers(model).items()
    assert layer.parts.transform is not None
    assert layer.parts.transform.factor.shape == (4,)
    assert torch.isfinite(model(drawn(2, 4, 5, 5))).all()
    assert all(torch.isfinite(part).all() for part in rank_one(torch.zeros(3, 2)))


def test_a_factor_for_each_row_is_needed() -> None:
    with pytest.raises(ValueError, match="init=svid gives each row a learned factor"):
        quantize(nn.Sequential(nn.Linear(4, 4)), {"weights": {"name": "sign", "init": "svid"}})
