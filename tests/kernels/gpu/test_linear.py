"""Packed products against int64 sums of numpy: every bit, for every number of tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitexp.kernels import KERNELS
from bitexp.kernels.gpu.configs import Tile
from bitexp.kernels.gpu.gemm import packed_gemm
from bitexp.kernels.gpu.layout import Packed, pack
from bitexp.kernels.gpu.linear import packed_linear
from bitexp.kernels.gpu.quantize import quantize
from tests.support.specs import spec_for

Oracle = Callable[..., Tensor]

TRITON = KERNELS.get("triton")


def codes_of(bits: int, rows: int, inputs: int, device: str) -> Tensor:
    codes = torch.randint(-1, 2 if bits == 2 else 1, (rows, inputs), dtype=torch.int8)
    return (codes if bits == 2 else 2 * codes + 1).to(device)


def assert_exact(oracle: Oracle, device: str, bits: int, tokens: int, inputs: int, outputs: int) -> None:
    torch.manual_seed(inputs)
    codes, x = codes_of(bits, outputs, inputs, device), torch.randn(tokens, inputs, device=device)
    scale, bias = torch.tensor(0.0371, device=device), torch.randn(outputs, device=device)
    prepared = TRITON.prepare(codes, scale)
    assert isinstance(prepared, Packed)
    y = TRITON.forward(x, prepared, bias)
    assert torch.equal(y.cpu(), oracle(x, codes, scale, bias))


@pytest.mark.parametrize(
    ("bits", "tokens", "inputs", "outputs"),
    [
        (2, 0, 64, 3),
        (2, 1, 1, 1),
        (1, 1, 129, 17),
        (2, 1, 700, 5),
        (2, 2, 65, 9),
        (1, 3, 64, 3),
        (2, 4, 100, 3),
        (2, 5, 63, 3),
        (1, 16, 320, 65),
        (2, 63, 64, 7),
        (2, 64, 65, 3),
        (2, 65, 64, 33),
        pytest.param(1, 64, 70, 3, marks=pytest.mark.slow),
        pytest.param(1, 128, 65, 5, marks=pytest.mark.slow),
        pytest.param(2, 128, 200, 130, marks=pytest.mark.slow),
        pytest.param(1, 65, 320, 130, marks=pytest.mark.slow),
        pytest.param(2, 300, 256, 130, marks=pytest.mark.slow),
    ],
)
def test_every_number_of_tokens(
    oracle: Oracle, device: str, bits: int, tokens: int, inputs: int, outputs: int
) -> None:
    assert_exact(oracle, device, bits, tokens, inputs, outputs)


@pytest.mark.slow
@settings(max_examples=40)
@given(
    bits=st.sampled_from([1, 2]),
    tokens=st.integers(0, 140),
    inputs=st.integers(1, 300),
    outputs=st.integers(1, 140),
)
def test_any_shape(oracle: Oracle, device: str, bits: int, tokens: int, inputs: int, outputs: int) -> None:
    assert_exact(oracle, device, bits, tokens, inputs, outputs)


@pytest.mark.parametrize("tokens", [1, 6])
@pytest.mark.parametrize("qmax", [127, 128])
@pytest.mark.parametrize("kind", ["none", "plain", "scaled", "channel"])
def test_biases_steps_and_code_ranges(oracle: Oracle, device: str, tokens: int, qmax: int, kind: str) -> None:
    torch.manual_seed(qmax)
    codes = torch.randint(-1, 3, (10, 70), dtype=torch.int8, device=device)  # the digit 3 too
    x = torch.randn(tokens, 70, device=device)
    scale = torch.rand(10 if kind == "channel" else (), device=device)
    bias = None if kind == "none" else torch.randn(10, device=device)
    y = TRITON.forward(x, TRITON.prepare(codes, scale), bias, spec_for(qmax, kind == "scaled"))
    assert torch.equal(y.cpu(), oracle(x, codes, scale, bias, qmax, kind == "scaled"))


@pytest.mark.parametrize(
    ("bits", "tokens"),
    [(2, 1), (1, 7), *(pytest.param(*p, marks=pytest.mark.slow) for p in [(1, 1), (2, 7)])],
)
def test_saturated_sums_do_not_overflow(oracle: Oracle, device: str, bits: int, tokens: int) -> None:
    """6912 codes of 1 times 127 (and -1 times 127): 16 bits would overflow."""
    codes = torch.ones(3, 6912, dtype=torch.int8, device=device)
    codes[1] = -1
    x = torch.full((tokens, 6912), 2.5, device=device)
    x[-1, :] *= -1
    scale = torch.tensor(1.0, device=device)
    packed = pack(codes, scale, bits)
    y = packed_linear(x, packed, None, 127, False)
    assert torch.equal(y.cpu(), oracle(x, codes, scale, None))
    assert float(y.abs().max()) == pytest.approx(6912 * 2.5)


@pytest.mark.parametrize("tokens", [1, 5])
def test_special_rows(oracle: Oracle, device: str, tokens: int) -> None:
    """Zeros, tiny and huge values, half-way cases; a NaN makes its row NaN, and only its row."""
    torch.manual_seed(0)
    codes, scale = codes_of(2, 6, 64, device), torch.tensor(0.5, device=device)
    packed = TRITON.prepare(codes, scale)
    halves = torch.arange(64, device=device) - 31.5
    halves[0] = 127
    for row in (torch.zeros(64), torch.full((64,), 1e-30), 1e30 * torch.randn(64), halves):
        x = row.to(device).repeat(tokens, 1)
        assert torch.equal(TRITON.forward(x, packed).cpu(), oracle(x, codes, scale, None))
    x = torch.randn(tokens, 64, device=device)
    x[0, 3] = float("nan")
    y = TRITON.forward(x, packed).cpu()
    assert y[0].isnan().all()
    assert torch.equal(y[1:], oracle(x[1:], codes, scale, None))


@pytest.mark.parametrize("split", [2, 3, 8])
def test_a_split_along_the_inputs_changes_no_bit(oracle: Oracle, device: str, split: int) -> None:
    torch.manual_seed(split)
    codes, x = codes_of(2, 21, 320, device), torch.randn(9, 320, device=device)
    scale, bias = torch.tensor(0.2, device=device), torch.randn(21, device=device)
    w, tile = pack(codes, scale, 2), Tile(16, 16, 64, 4, 2, split)
    y = packed_gemm(quantize(x, 127, w.padded), w, bias, "plain", torch.float32, tile)
    assert torch.equal(y.cpu(), oracle(x, codes, scale, bias))


def test_leading_dimensions_and_strides(oracle: Oracle, device: str) -> None:
    torch.manual_seed(0)
    codes, scale = codes_of(2, 4, 30, device), torch.tensor(0.5, device=device)
    packed = TRITON.prepare(codes, scale)
    wide = torch.randn(2, 3, 60, device=device)
    for x in (wide[..., :30], wide[..., ::2], wide[0, :1, 5:35], wide[1, 2, 1:31], wide[:, :0, :30]):
        y = TRITON.forward(x, packed)
        assert torch.equal(y.cpu(), oracle(x, codes, scale, None))


def test_what_does_not_fit_is_refused(device: str) -> None:
    packed = TRITON.prepare(codes_of(2, 4, 30, device), torch.ones((), device=device))
    with pytest.raises(ValueError, match="x has 31 features, the packed weights have 30 inputs"):
        TRITON.forward(torch.randn(2, 31, device=device), packed)
    q = quantize(torch.randn(5, 30, device=device), 127, 128)
    with pytest.raises(ValueError, match="codes of 128 inputs meet weights of 64"):
        packed_gemm(q, packed, None, "none", torch.float32)
    with pytest.raises(ValueError, match=r"30 inputs .* do not fit 16 contiguous columns"):
        quantize(torch.randn(5, 30, device=device), 127, 16)
    with pytest.raises(ValueError, match="norm=rms is fused only on a GPU, with packed weights"):
        TRITON.forward(torch.randn(2, 30, device=device), packed, None, spec_for(0), "rms")


def test_floats_wide_codes_and_groups_go_by_torch(device: str) -> None:
    """What the packed kernels do not take has the bits of `reference`."""
    torch.manual_seed(0)
    reference = KERNELS.get("reference")
    x, bias = torch.randn(6, 40, device=device), torch.randn(9, device=device)
    ternary, wide = codes_of(2, 9, 40, device), torch.randint(-8, 8, (9, 40), dtype=torch.int8, device=device)
    step, groups = torch.tensor(0.3, device=device), torch.rand(9, 4, device=device)
    for codes, scale, qmax in (
        (ternary, step, 0),
        (wide, step, 127),
        (wide, groups, 127),
        (ternary, groups, 0),
    ):
        y = TRITON.forward(x, TRITON.prepare(codes, scale), bias, spec_for(qmax))
        expected = reference.forward(x, reference.prepare(codes, scale), bias, spec_for(qmax))
        assert torch.equal(y, expected)
