"""Codes of activations: without a norm the bits of numpy, with one those of torch but for a few codes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from bitexp.quant.activations.absmax import absmax_codes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitexp.kernels.gpu.layout import pack
from bitexp.kernels.gpu.linear import packed_linear
from bitexp.kernels.gpu.quantize import norm_backward, quantize
from bitexp.quant.norms import normalize, normalize_backward
from bitexp.quant.spec import Norm

Codes = Callable[[Tensor, int], tuple[Tensor, Tensor]]


@settings(max_examples=15)
@given(
    rows=st.integers(0, 4),
    inputs=st.integers(1, 150),
    more=st.integers(0, 70),
    qmax=st.sampled_from([127, 128]),
    size=st.sampled_from([1e-7, 1.0, 1e8]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_codes_steps_and_sums_are_those_of_numpy(
    oracle_codes: Codes,
    device: str,
    rows: int,
    inputs: int,
    more: int,
    qmax: int,
    size: float,
    dtype: torch.dtype,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    x = (torch.randn(rows, inputs) * size).to(device, dtype)
    q = quantize(x, qmax, inputs + more)
    codes, scale = oracle_codes(x, qmax)
    assert torch.equal(q.codes[:, :inputs].cpu().long(), codes)
    assert not q.codes[:, inputs:].any()
    assert torch.equal(q.scale.cpu(), scale)
    assert torch.equal(q.total.cpu().long(), codes.sum(1))


def test_torch_on_this_device_gives_the_codes_and_steps_of_numpy(oracle_codes: Codes, device: str) -> None:
    """Training and `reference` go by torch: its steps must not depend on the device."""
    torch.manual_seed(0)
    x = torch.randn(4096, 8)
    codes, scale = absmax_codes(x.to(device), 127, (-1,))
    expected, steps = oracle_codes(x, 127)
    assert torch.equal(codes.cpu().long(), expected)
    assert torch.equal(scale[:, 0].cpu(), steps)


def test_rows_longer_than_a_block(oracle_codes: Codes, device: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 9001, device=device)
    x[:, -1] = 7.0
    q = quantize(x, 127, 9024)
    codes, scale = oracle_codes(x, 127)
    assert torch.equal(q.codes[:, :9001].cpu().long(), codes)
    assert torch.equal(q.scale.cpu(), scale)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("inputs", [5, 4100])
def test_a_fused_norm_is_that_of_torch_to_a_step(device: str, norm: Norm, inputs: int) -> None:
    torch.manual_seed(inputs)
    x = 3 * torch.randn(3, inputs, device=device) + 1
    q = quantize(x, 127, inputs, norm, save=True)
    normed, mean, rstd = normalize(x, norm, -1)
    codes, scale = absmax_codes(normed, 127, (-1,))
    assert int((q.codes.int() - codes.int()).abs().max()) <= 1
    assert float((q.codes != codes).float().mean()) < 0.01
    torch.testing.assert_close(q.scale[:, None], scale, rtol=1e-5, atol=0)
    assert q.rstd is not None
    assert rstd is not None
    torch.testing.assert_close(q.rstd[:, None], rstd, rtol=1e-5, atol=0)
    assert (q.mean is None) == (mean is None)
    if mean is not None:
        torch.testing.assert_close(q.mean[:, None], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
@pytest.mark.parametrize("inputs", [5, 4100])
def test_the_backward_of_the_norm_is_that_of_torch(device: str, norm: Norm, inputs: int) -> None:
    torch.manual_seed(inputs)
    x, grad = 3 * torch.randn(3, inputs, device=device) + 1, torch.randn(3, inputs, device=device)
    q = quantize(x, 127, inputs, norm, save=True)
    out = norm_backward(grad, x, norm, q.mean, q.rstd)
    _, mean, rstd = normalize(x, norm, -1)
    expected = grad if rstd is None else normalize_backward(grad.clone(), x, mean, rstd, -1)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_a_product_with_a_fused_norm_is_near_that_with_torch_s(device: str, norm: Norm, tokens: int) -> None:
    torch.manual_seed(tokens)
    x = torch.randn(tokens, 70, device=device) + 1
    codes = torch.randint(-1, 2, (9, 70), dtype=torch.int8, device=device)
    packed = pack(codes, torch.tensor(0.5, device=device), 2)
    y = packed_linear(x, packed, None, 127, False, norm)
    expected = packed_linear(normalize(x, norm, -1)[0], packed, None, 127, False)
    torch.testing.assert_close(y, expected, atol=0.05, rtol=0)  # three flipped codes would be more


def test_a_gradient_of_another_shape_is_refused(device: str) -> None:
    x = torch.randn(3, 8, device=device)
    q = quantize(x, 127, 8, "rms", save=True)
    with pytest.raises(ValueError, match="must be alike"):
        norm_backward(x[:2], x, "rms", None, q.rstd)
