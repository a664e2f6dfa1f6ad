"""Cases for the compiled CPU kernel. Where it cannot be compiled, importing this skips the test module."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitexp.kernels import KERNELS
from bitexp.kernels.cpu import Cpu
from bitexp.kernels.cpu.jit import missing
from bitexp.kernels.reference import PLAIN
from bitexp.quant.product import Quantized
from bitexp.quant.spec import LayerSpec

if missing():
    pytest.skip(str(missing()), allow_module_level=True)

from bitexp.kernels.cpu.dots import supported

REFERENCE = KERNELS.get("reference")
every_isa = pytest.mark.parametrize("isa", supported())
RANGES = {"binary": (-1, 1), "ternary": (-1, 1), "int2": (-1, 2), "int4": (-8, 7)}
Case = tuple[Tensor, Tensor, Tensor, Tensor | None]


def case(
    kind: str, tokens: int, inputs: int, outputs: int, per_output: bool, bias: bool, seed: int = 0
) -> Case:
    """Activations, codes, steps and bias."""
    draw = torch.Generator().manual_seed(seed)
    low, high = RANGES[kind]
    codes = torch.randint(low, high + 1, (outputs, inputs), dtype=torch.int8, generator=draw)
    if kind == "binary":
        codes = codes.float().sub(0.5).sign().to(torch.int8)
    steps = torch.rand(outputs, generator=draw) if per_output else torch.tensor(0.037)
    added = torch.randn(outputs, generator=draw) if bias else None
    return torch.randn(tokens, inputs, generator=draw), codes, steps, added


def assert_same(
    isa: str, x: Tensor, codes: Tensor, steps: Tensor, bias: Tensor | None, spec: LayerSpec = PLAIN
) -> None:
    """The kernel gives what the reference gives, to the bit."""
    expected = REFERENCE.forward(x, Quantized(codes, steps), bias, spec)
    kernel = Cpu(isa)
    got = kernel.forward(x, kernel.prepare(codes, steps), bias, spec)
    assert got.shape == expected.shape
    assert torch.equal(got, expected)
