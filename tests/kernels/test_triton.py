"""The kernel `triton` without a GPU: its layout, why it is refused, and its tests in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version
from torch import nn

from bitexp.deploy.cuda_graph import Replay
from bitexp.deploy.frozen import freeze
from bitexp.deploy.fused_norm import FusedLinear, fuse_norms
from bitexp.kernels import KERNELS, choose_kernel
from bitexp.kernels.gpu.layout import Packed, bits_for, pack, unpack
from bitexp.quant.backend import TORCH
from bitexp.quant.layers import BitConv2d, BitLinear
from bitexp.quant.product import Quantized
from tests.support.marks import others_slow
from tests.support.specs import spec_for

TRITON = KERNELS.get("triton")
TESTS = Path(__file__).parent / "gpu"


def no_interpreter() -> str | None:
    """Why Triton's interpreter cannot run here, or None."""
    if not find_spec("triton"):
        return "triton is not installed"
    if Version(version("triton")) < Version("3.7"):
        return "the interpreter of Triton 3.6 uses what numpy 1.25 deprecates and 2.4 refuses"
    return None


@pytest.mark.skipif(no_interpreter() is not None, reason=str(no_interpreter()))
@pytest.mark.parametrize(
    ("which", "where"),
    others_slow(
        [("not slow and not gpu", "test_linear.py"), ("not slow and not gpu", ""), ("slow", "")],
        [("not slow and not gpu", "test_linear.py")],
    ),
)
def test_in_triton_s_interpreter(which: str, where: str) -> None:
    """Triton reads TRITON_INTERPRET when it is imported: these need a process of their own."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", which, str(TESTS / where)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@given(
    bits=st.sampled_from([1, 2]),
    rows=st.integers(1, 5),
    inputs=st.integers(1, 300),
    seed=st.integers(0, 1000),
)
def test_packing_there_and_back(bits: int, rows: int, inputs: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    values = [-1, 1] if bits == 1 else [-1, 0, 1, 2]
    codes = torch.from_numpy(draw.choice(values, (rows, inputs)).astype(np.int8))
    packed = pack(codes, torch.ones(()), bits)
    run = 128 // bits
    assert packed.padded == -(-inputs // run) * run
    assert packed.data.shape == (rows, packed.padded * bits // 8)
    assert packed.data.is_contiguous()
    assert torch.equal(unpack(packed), codes)


def test_where_a_code_lies() -> None:
    """Input k of a run: byte k % 16, digit k // 16, lowest first."""
    for bits, run, one in ((2, 64, 2), (1, 128, 1)):
        for k in (0, 1, 15, 16, 47, run - 1, run):
            codes = torch.full((1, 2 * run), -1, dtype=torch.int8)
            codes[0, k] = 1
            data = pack(codes, torch.ones(()), bits).data[0]
            byte = 16 * (k // run) + k % 16
            assert int(data[byte]) == one << (bits * (k % run // 16))
            assert int(data.sum()) == int(data[byte])


def test_padding_stands_for_code_0() -> None:
    assert set(pack(torch.ones(1, 1, dtype=torch.int8), torch.ones(()), 2).data.tolist()[0][1:]) == {
        0b01010101
    }


@pytest.mark.parametrize(
    ("codes", "bits"),
    [([-1, 1], 1), ([1], 1), ([-1, 0, 1], 2), ([0], 2), ([-1, 2], 2), ([-2, 1], None), ([3], None), ([], 2)],
)
def test_the_bits_that_codes_need(codes: list[int], bits: int | None) -> None:
    assert bits_for(torch.tensor(codes, dtype=torch.int8)) == bits


def test_what_is_packed_and_what_stays_int8() -> None:
    codes = torch.tensor([[-1, 0, 1]], dtype=torch.int8)
    one = torch.ones(())
    assert isinstance(TRITON.prepare(codes, one), Packed)
    assert isinstance(TRITON.prepare(codes, torch.ones(1)), Packed)
    for kept, scale in ((codes, torch.ones(1, 3)), (codes * 5, one), (codes.reshape(1, 3, 1, 1), one)):
        assert TRITON.prepare(kept, scale)[0] is kept


def test_it_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TRITON.unavailable("cpu") == "it runs on GPUs, not on cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="kernel=triton cannot run here: torch sees no GPU"):
        choose_kernel("triton", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    kernel, name, reason = choose_kernel("auto", "cuda")
    assert (kernel, name) == (KERNELS.get("reference"), "reference")
    assert "triton: Tesla T4 has compute capability 7.5; it needs 8.0" in reason
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert choose_kernel("auto", "cuda")[:2] == (TRITON, "triton")
    monkeypatch.setattr("bitexp.kernels.gpu.find_spec", lambda name: None)
    assert TRITON.unavailable("cuda") == "the package triton is not installed"


@pytest.mark.parametrize("bits", [1, 2])
def test_on_the_cpu_it_goes_by_torch(bits: int) -> None:
    """Models are built, probed and frozen on the CPU before they move to a GPU."""
    torch.manual_seed(0)
    codes = torch.randint(0, 2, (5, 70), dtype=torch.int8) * bits - 1
    x, bias, scale = torch.randn(3, 70), torch.randn(5), torch.tensor(0.3)
    reference = KERNELS.get("reference")
    prepared = TRITON.prepare(codes, scale)
    assert isinstance(prepared, Packed)
    expected = reference.forward(x, Quantized(codes, scale), bias)
    assert torch.equal(TRITON.forward(x, prepared, bias), expected)
    x_codes = torch.randint(-127, 128, (2, 3, 5, 5), dtype=torch.int8)
    spec = spec_for(conv=((1, 1), (0, 0), (1, 1), 1))
    weight = torch.randint(-1, 2, (4, 3, 3, 3), dtype=torch.int8)
    assert torch.equal(TRITON.backend.product(x_codes, weight, spec), TORCH.product(x_codes, weight, spec))
    with pytest.raises(ValueError, match="fused only on a GPU"):
        TRITON.forward(x, prepared, bias, norm="rms")


def test_importing_bitexp_imports_no_triton() -> None:
    code = "import sys, bitexp.kernels; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_norms_are_fused_where_weights_are_packed(make_quantizer: Callable[..., Any]) -> None:
    quantizer = make_quantizer("ternary_mean")
    floats = make_quantizer("ternary_mean", activations="none")
    linear = BitLinear(nn.Linear(8, 8), quantizer)
    conv = BitConv2d(nn.Conv2d(1, 8, 3), quantizer)
    model = nn.Sequential(conv, nn.Flatten(), linear, linear, BitLinear(nn.Linear(8, 8), floats))
    freeze(model, "auto", TRITON)
    assert fuse_norms(model) == ["2"]
    fused = model[2]
    assert isinstance(fused, FusedLinear)
    assert model[3] is fused
    with pytest.raises(TypeError, match="a quantized layer takes floats"):
        fused(torch.ones(3, 8, dtype=torch.int64))


def test_gradients_pass_through_fused_norms(make_quantizer: Callable[..., Any]) -> None:
    model = nn.Sequential(BitLinear(nn.Linear(8, 8), make_quantizer("ternary_mean")))
    leaves = [torch.randn(3, 8).requires_grad_() for _ in range(2)]
    leaves[1].data.copy_(leaves[0].data)
    expected = torch.autograd.grad(model(leaves[0]).square().sum(), leaves[0])[0]
    freeze(model, "auto", TRITON)
    state = set(model.state_dict())
    fuse_norms(model)
    assert set(model.state_dict()) == state
    found = torch.autograd.grad(model(leaves[1]).square().sum(), leaves[1])[0]
    torch.testing.assert_close(found, expected)


def test_a_graph_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match="a CUDA graph needs its input on a GPU, not on cpu"):
        Replay(nn.Linear(2, 2), torch.ones(1, 2))
