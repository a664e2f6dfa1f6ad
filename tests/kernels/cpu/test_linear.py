"""The compiled product of activations and packed weights: the reference's bits with every instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitexp.kernels.cpu import Cpu, threads
from bitexp.quant.norms import normalize
from bitexp.quant.product import Quantized
from bitexp.quant.spec import LayerSpec
from tests.support.cpu_kernel import RANGES, REFERENCE, assert_same, case, every_isa
from tests.support.specs import spec_for


@every_isa
@given(
    kind=st.sampled_from(list(RANGES)),
    tokens=st.sampled_from([0, 1, 2, 3, 5, 63, 64, 65, 97, 128]),
    inputs=st.one_of(st.integers(1, 80), st.sampled_from([127, 256, 1023, 4099])),
    outputs=st.one_of(st.integers(1, 20), st.sampled_from([63, 64, 65, 130])),
    per_output=st.booleans(),
    bias=st.sampled_from(["none", "plain", "scaled"]),
    qmax=st.sampled_from([127, 128, 7]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape_gives_the_bits_of_the_reference(
    isa: str,
    kind: str,
    tokens: int,
    inputs: int,
    outputs: int,
    per_output: bool,
    bias: str,
    qmax: int,
    seed: int,
) -> None:
    x, codes, steps, added = case(kind, tokens, inputs, outputs, per_output, bias != "none", seed)
    assert_same(isa, x, codes, steps, added, spec_for(qmax, bias == "scaled"))


@every_isa
@pytest.mark.parametrize("kind", RANGES)
@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_saturating_rows_do_not_overflow(isa: str, kind: str, tokens: int) -> None:
    """6,912 inputs, all codes at their largest and all activations at +-127: int16 sums would wrap."""
    x = torch.full((tokens, 6912), 3.7)
    x[-1, ::2] *= -1
    for code in {*RANGES[kind]} - {0}:
        codes = torch.full((70, 6912), code, dtype=torch.int8)
        codes[1] = RANGES[kind][0]
        sums = (127 * x.sign().long()) @ codes.long().t()
        expected = sums.float() * (x.abs().amax(1, keepdim=True) / 127 * torch.tensor(0.5))
        kernel = Cpu(isa)
        got = kernel.forward(x, kernel.prepare(codes, torch.tensor(0.5)))
        assert torch.equal(got, expected)


@every_isa
def test_rows_of_zeros_of_nan_and_of_infinity(isa: str) -> None:
    x, codes, steps, bias = case("ternary", 8, 100, 70, False, True)
    x[1], x[2, 3], x[3, 99], x[4, 0], x[5] = 0, torch.nan, torch.inf, -torch.inf, x[5] * 1e38
    x[6] *= 1e-42
    kernel = Cpu(isa)
    expected = REFERENCE.forward(x, Quantized(codes, steps), bias)
    got = kernel.forward(x, kernel.prepare(codes, steps), bias)
    assert expected[2:5].isnan().all()
    assert torch.equal(got.nan_to_num(7.5), expected.nan_to_num(7.5))


@every_isa
@pytest.mark.parametrize("kind", RANGES)
@pytest.mark.parametrize("outputs", [1, 63, 64, 130])
def test_every_output_is_written_and_nothing_else(isa: str, kind: str, outputs: int) -> None:
    x, codes, steps, _ = case(kind, 7, 50, outputs, True, False)
    prepared = Cpu(isa).prepare(codes, steps)
    memory = torch.full((9, outputs), torch.nan)
    y = memory[1:8]
    scratch = threads.scratch(prepared.scratch)
    prepared.run(127, 0, 0, 0, x.data_ptr(), y.data_ptr(), scratch, 0, 7, 0, prepared.streams)
    assert torch.equal(y, REFERENCE.forward(x, Quantized(codes, steps)))
    assert memory[0].isnan().all()
    assert memory[8].isnan().all()


@every_isa
@given(token=st.integers(0, 100), stream=st.integers(0, 3), seed=st.integers(0, 99))
def test_ranges_of_tokens_and_streams_make_up_the_whole(isa: str, token: int, stream: int, seed: int) -> None:
    x, codes, steps, bias = case("ternary", 100, 40, 170, True, True, seed)
    assert bias is not None
    prepared = Cpu(isa).prepare(codes, steps)
    y = torch.full((100, 170), torch.nan)
    scratch = threads.scratch(prepared.scratch)
    where = (127, bias.data_ptr(), 0, 0, x.data_ptr(), y.data_ptr(), scratch)
    for tokens in ((0, token), (token, 100)):
        for streams in ((0, stream), (stream, prepared.streams)):
            prepared.run(*where, *tokens, *streams)
    assert torch.equal(y, REFERENCE.forward(x, Quantized(codes, steps), bias))


def test_numpy_agrees_about_the_codes() -> None:
    """The codes by which a whole layer is computed, read off a layer with unit weights."""
    x = torch.randn(3, 64)
    kernel = Cpu()
    prepared = kernel.prepare(torch.eye(64, dtype=torch.int8), torch.tensor(1.0))
    absmax = np.abs(x.numpy()).max(1, keepdims=True)
    codes = np.rint(x.numpy() * (np.float32(1) / absmax * np.float32(127)))
    expected = codes * (absmax / np.float32(127))
    assert np.array_equal(kernel.forward(x, prepared).numpy(), expected)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_outputs_are_fp32_whatever_the_default_is(default: torch.dtype) -> None:
    x, codes, steps, bias = case("ternary", 3, 20, 70, True, True)
    expected = REFERENCE.forward(x, Quantized(codes, steps), bias)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        got = Cpu().forward(x, Cpu().prepare(codes, steps), bias)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("tokens", [1, 90])
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_a_norm_is_taken_in_the_same_call(norm: Any, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, codes, steps, bias = case("ternary", tokens, 50, 70, True, True)
    spec, kernel = LayerSpec((70, 50)), Cpu()
    expected = REFERENCE.forward(normalize(x, norm, -1)[0], Quantized(codes, steps), bias, spec)
    prepared = kernel.prepare(codes, steps)
    assert kernel.takes_norm(prepared, spec)
    monkeypatch.setattr(type(kernel.backend), "normalize", None)  # no other call
    assert torch.equal(kernel.forward(x, prepared, bias, spec, norm), expected)
