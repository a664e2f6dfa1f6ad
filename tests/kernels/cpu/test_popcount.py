"""Signs times signs by counting bits: the bits of `reference`, at every width."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitexp.kernels import KERNELS
from bitexp.quant.levels import BINARY
from bitexp.quant.spec import ActivationSpec, LayerSpec, Part
from tests.support.layer_cases import codes_of

CPU, REFERENCE = KERNELS.get("cpu"), KERNELS.get("reference")
pytestmark = pytest.mark.skipif(bool(CPU.unavailable("cpu")), reason=str(CPU.unavailable("cpu")))


@given(
    lead=st.sampled_from([(), (1,), (5,), (0,), (2, 3)]),
    inputs=st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 129, 1000])),
    outputs=st.integers(1, 70),
    seed=st.integers(0, 2**32 - 1),
)
def test_signs_times_signs_have_the_bits_of_the_reference(
    lead: tuple[int, ...], inputs: int, outputs: int, seed: int
) -> None:
    torch.manual_seed(seed)
    spec = LayerSpec((outputs, inputs), activations=ActivationSpec(Part("sign"), BINARY), levels=BINARY)
    weights = torch.where(torch.rand(outputs, inputs) < 0.5, -1, 1).to(torch.int8)
    codes = torch.where(torch.rand(*lead, inputs) < 0.5, -1, 1).to(torch.int8)
    scale, bias = torch.rand(*lead, 1) + 0.1, torch.randn(outputs)
    for w_scale in (torch.tensor(0.3), torch.rand(outputs) + 0.01):
        ours, theirs = (
            kernel.forward_codes(codes, scale, kernel.prepare(weights, w_scale), bias, spec)
            for kernel in (CPU, REFERENCE)
        )
        assert torch.equal(ours, theirs)


def test_codes_of_others_are_unpacked_once() -> None:
    spec = LayerSpec((9, 70), activations=ActivationSpec(Part("sign"), BINARY))
    prepared = CPU.prepare(codes_of(spec.levels, 9, 70), torch.tensor(0.3))
    assert CPU.weights(prepared).codes is CPU.weights(prepared).codes
