"""The norm against torch's own, and activation codes against numpy."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torch.testing import assert_close

from bitexp.quant.absmax import absmax_codes
from bitexp.quant.norms import normalize, normalize_backward

TOKENS = arrays(
    np.float32,
    st.tuples(st.integers(0, 5), st.integers(1, 40)),
    elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
).map(torch.from_numpy)


@pytest.mark.parametrize("qmax", [127, 128])
@given(x=TOKENS)
def test_codes_of_tokens_equal_the_formula_in_numpy(qmax: int, x: Tensor) -> None:
    codes, step = absmax_codes(x, qmax, (-1,))
    assert codes.dtype == torch.int8
    absmax = np.maximum(np.abs(x.numpy()).max(-1, keepdims=True), np.float32(1e-5))
    factor = np.float32(1) / absmax * np.float32(qmax)
    assert np.array_equal(codes.numpy(), np.minimum(np.rint(x.numpy() * factor), 127))
    assert np.array_equal(step.numpy(), absmax / np.float32(qmax))


def test_the_reciprocal_is_multiplied_since_a_division_has_other_bits() -> None:
    absmax = torch.linspace(0.5, 4, 300)[:, None]
    x = torch.cat([absmax, absmax * (torch.arange(127) + 0.5) / 127], -1)
    codes, _ = absmax_codes(x, 127, (-1,))
    assert torch.equal(codes.float(), (x * (absmax.reciprocal() * 127)).round())
    for other in (x * torch.full_like(absmax, 127).div(absmax), x / (absmax / 127)):
        assert not torch.equal(codes.float(), other.round())


@given(x=TOKENS)
def test_the_largest_of_a_token_has_the_code_127_and_zeros_stay_zeros(x: Tensor) -> None:
    codes, _ = absmax_codes(x, 127, (-1,))
    magnitudes = codes.abs().amax(-1) if codes.numel() else codes.amax(-1)
    large = x.abs().amax(-1) >= 1e-5
    assert bool((magnitudes[large] == 127).all())
    assert not codes[x == 0].any()
    assert codes.numel() == 0 or int(codes.min()) >= -127


def test_128_levels_reach_minus_128_and_clip_at_127() -> None:
    codes, step = absmax_codes(torch.tensor([[1.0, -1.0, 0.5]]), 128, (-1,))
    assert codes.tolist() == [[127, -128, 64]]
    assert step.item() == 1 / 128


def test_one_step_covers_a_whole_sample_of_a_convolution() -> None:
    x = torch.randn(3, 4, 5, 6)
    codes, step = absmax_codes(x, 127, (-3, -2, -1))
    assert step.shape == (3, 1, 1, 1)
    flat_codes, flat_step = absmax_codes(x.flatten(1), 127, (-1,))
    assert torch.equal(codes.flatten(1), flat_codes)
    assert torch.equal(step.flatten(), flat_step.flatten())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite_reaches_the_step(bad: float) -> None:
    x = torch.ones(2, 4)
    x[1, 2] = bad
    _, step = absmax_codes(x, 127, (-1,))
    assert step.isfinite().flatten().tolist() == [True, False]


def expected_norm(x: Tensor, norm: str, dim: int) -> Tensor:
    """torch's own norms, over any dimension."""
    last = x.movedim(dim, -1)
    shape = last.shape[-1:]
    y = F.layer_norm(last, shape) if norm == "layer" else F.rms_norm(last, shape, eps=1e-5)
    return y.movedim(-1, dim)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize(("shape", "dim"), [((5, 24), -1), ((2, 3, 24), -1), ((2, 24, 3, 4), -3)])
def test_norms_and_their_gradients_equal_those_of_torch(
    norm: Literal["rms", "layer"], shape: tuple[int, ...], dim: int
) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape) * 2 + 0.3).requires_grad_()
    expected = expected_norm(x.double(), norm, dim)
    normed, mean, rstd = normalize(x.detach(), norm, dim)
    assert_close(normed, expected.float(), rtol=1e-5, atol=1e-6)

    grad = torch.randn(shape)
    (expected_grad,) = torch.autograd.grad(expected, x, grad.double())
    actual = normalize_backward(grad, x.detach(), mean, rstd, dim)
    assert_close(actual, expected_grad, rtol=1e-5, atol=1e-6)


def test_without_a_norm_x_stays_what_it_is() -> None:
    x = torch.randn(3, 4)
    normed, mean, rstd = normalize(x, "none", -1)
    assert normed is x
    assert mean is None
    assert rstd is None


def test_x_is_overwritten_only_where_that_is_allowed() -> None:
    x = torch.randn(3, 4)
    before = x.clone()
    codes, step = absmax_codes(x, 127, (-1,))
    assert torch.equal(x, before)
    for ours, theirs in zip(absmax_codes(x, 127, (-1,), overwrite=True), (codes, step), strict=True):
        assert torch.equal(ours, theirs)
