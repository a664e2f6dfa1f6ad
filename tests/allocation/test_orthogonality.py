"""ORM against the formula in feature space, and what follows from it by hand."""

from __future__ import annotations

import math

import pytest
import torch

from bitexp.allocation.orthogonality import importance, orthogonality


def test_it_is_linear_cka() -> None:
    """As `feature_space_orm` in mixed_bit/ORM.py of github.com/MAC-AutoML/OMPQ."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 4, 5, generator=generator), torch.randn(30, 7, generator=generator)
    y = y + x.flatten(1)[:, :7]
    a, b = (f.flatten(1).double() - f.flatten(1).double().mean(0) for f in (x, y))
    expected = (a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    matrix = orthogonality([x, y])
    assert float(matrix[0, 1]) == pytest.approx(float(expected))
    assert matrix.diagonal().tolist() == pytest.approx([1, 1])
    rotated = torch.linalg.qr(torch.randn(7, 7, generator=generator)).Q
    assert float(orthogonality([y, 3 * y @ rotated + 1])[0, 1]) == pytest.approx(1)


def test_the_importance_by_hand() -> None:
    matrix = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.25], [0.0, 0.25, 1.0]])
    theta = [math.exp(-2 * gamma) for gamma in (0.5, 0.75, 0.25)]
    expected = [sum(theta) / 3, sum(theta[1:]) / 2, theta[2]]
    assert importance(matrix, 2.0).tolist() == pytest.approx(expected)
