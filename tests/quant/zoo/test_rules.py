"""Estimators against the derivatives and the code of their authors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bitexp.quant import ESTIMATORS

VALUES = torch.linspace(-2.5, 2.5, 101, dtype=torch.float64)


def slope(name: str, share: float | None = None, **options: object) -> Tensor:
    """What an estimator makes of a gradient of one, for signs."""
    rule = ESTIMATORS.get(name)(**options)
    if share is not None:
        rule.set_progress(share)
    ones = torch.ones_like(VALUES)
    return rule(ones, VALUES, torch.where(VALUES >= 0, 1.0, -1.0).double(), ones)


def derivative(function: object) -> Tensor:
    x = VALUES.clone().requires_grad_()
    (grad,) = torch.autograd.grad(function(x).sum(), x)  # type: ignore[operator]
    return grad


def approximate_sign(x: Tensor) -> Tensor:
    """ApproxSign as Bi-Real Net has it, in four pieces."""
    pieces = torch.where(x < 0, 2 * x + x * x, 2 * x - x * x)
    return torch.where(x < -1, -torch.ones_like(x), torch.where(x < 1, pieces, torch.ones_like(x)))


def sign_swish(x: Tensor) -> Tensor:
    """SignSwish of BNN+ with beta 5."""
    return 2 * torch.sigmoid(5 * x) * (1 + 5 * x * (1 - torch.sigmoid(5 * x))) - 1


def test_polynomial_is_the_slope_of_approx_sign() -> None:
    torch.testing.assert_close(slope("polynomial"), derivative(approximate_sign))


def test_swish_is_the_slope_of_sign_swish() -> None:
    torch.testing.assert_close(slope("swish"), derivative(sign_swish))


@pytest.mark.parametrize("epoch", [0, 60, 119])
def test_tanh_is_that_of_ir_net_at_every_epoch_of_its_trainer(epoch: int) -> None:
    t = 10 ** (-3 + (1 - -3) / 120 * epoch)  # trainer.py of htqin/IR-Net
    k = max(1 / t, 1)
    expected = k * t * (1 - torch.tanh(VALUES * t) ** 2)
    torch.testing.assert_close(slope("tanh", epoch / 120), expected, rtol=1e-5, atol=1e-7)


def test_tanh_with_a_slope_and_a_floor_is_that_of_one_bit() -> None:
    torch.testing.assert_close(slope("tanh", slope=1.0, floor=0.001), 1.001 - torch.tanh(VALUES) ** 2)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_rectified_cuts_the_tails_where_re_cu_does(share: float) -> None:
    rise = (0.99 - 0.85) / (math.e - 1)
    tau = rise * math.e**share + (0.85 - rise)  # recu.py of htqin/BiBench
    bound = -float(VALUES.abs().mean()) * math.log(2 - 2 * tau)
    expected = (VALUES.abs() <= bound).double()
    assert 0 < float(expected.mean()) <= 1
    assert torch.equal(slope("rectified", share), expected)


def test_trust_ends_half_the_distance_of_two_levels_beyond_the_last_one() -> None:
    trusted = slope("trust")
    assert torch.equal(trusted, (VALUES.abs() <= 2).double())
    assert torch.equal(slope("trust", within=0.5), ((VALUES.abs() - 1).abs() <= 0.5).double())


def test_ewgs_enlarges_the_gradient_that_moves_a_value_to_its_level() -> None:
    rule = ESTIMATORS.get("ewgs")(delta=0.1)
    value, quantized = torch.tensor([0.3, 0.3, -0.4, 1.0]), torch.tensor([0.0, 0.0, 0.0, 1.0])
    grad, scale = torch.tensor([1.0, -1.0, 2.0, 3.0]), torch.tensor(0.5)
    expected = grad * (1 + 0.1 * torch.sign(grad) * (value - quantized) / scale)
    torch.testing.assert_close(rule(grad, value, quantized, scale), expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("trust", {"within": 0.0}),
        ("swish", {"beta": -1.0}),
        ("tanh", {"slope": 0.0}),
        ("ewgs", {"delta": -1.0}),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ESTIMATORS.get(name)(**options)
