"""int8 times int8, alone, with the scales, unfolded from a convolution, and in compiled training."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bitexp.kernels.gpu.int8 import int8_gemm
from bitexp.kernels.gpu.product import Int8GpuBackend
from bitexp.quant.backend import TORCH
from bitexp.quant.layers import BitConv2d, BitLinear
from bitexp.quant.product import Quantized, scaled_product
from bitexp.quant.spec import ConvArgs, LayerSpec
from tests.support.specs import spec_for

BACKEND = Int8GpuBackend()


def int8(*shape: int, device: str) -> Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8).to(device)


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(1, 1, 1), (3, 65, 7), (65, 130, 66), (128, 64, 3), (2, 100, 140)]
)
def test_sums_are_those_of_numpy(device: str, rows: int, inputs: int, outputs: int) -> None:
    torch.manual_seed(rows)
    x, w = int8(rows, inputs, device=device), int8(outputs, inputs, device=device)
    assert torch.equal(int8_gemm(x, w).cpu().double(), (x.cpu().long() @ w.cpu().long().T).double())


def test_saturated_sums_do_not_overflow(device: str) -> None:
    x = torch.full((2, 1040), -128, dtype=torch.int8, device=device)
    assert (int8_gemm(x, x) == 1040 * 128 * 128).all()


@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("kind", ["none", "plain", "scaled"])
def test_scales_round_as_torch_s(device: str, channel: bool, kind: str) -> None:
    torch.manual_seed(0)
    x, w = int8(2, 5, 70, device=device), int8(9, 70, device=device)
    x_scale, w_scale = torch.rand(2, 5, 1, device=device), torch.rand(9 if channel else (), device=device)
    bias = None if kind == "none" else torch.randn(9, device=device)
    spec = spec_for(scaled_bias=kind == "scaled")
    y = scaled_product(x, x_scale, Quantized(w, w_scale), bias, spec, BACKEND)
    assert torch.equal(y.cpu(), on_cpu(x, x_scale, w, w_scale, bias, spec))
    assert y._base is None


def on_cpu(
    x: Tensor, x_scale: Tensor, w: Tensor, w_scale: Tensor, bias: Tensor | None, spec: LayerSpec
) -> Tensor:
    """`scaled_product` by torch on the CPU, whose sums in fp32 are exact."""
    weights = Quantized(w.cpu(), w_scale.cpu())
    return scaled_product(x.cpu(), x_scale.cpu(), weights, None if bias is None else bias.cpu(), spec)


@pytest.mark.parametrize(
    "conv",
    [
        ((1, 1), (0, 0), (1, 1), 1),
        ((2, 1), (1, 2), (1, 1), 1),
        ((1, 2), (2, 0), (2, 1), 1),
        ((1, 1), (1, 1), (1, 1), 3),
    ],
)
def test_convolutions(device: str, conv: ConvArgs) -> None:
    torch.manual_seed(0)
    x, w = int8(2, 6, 7, 8, device=device), int8(9, 6 // conv[3], 3, 2, device=device)
    x_scale, w_scale = torch.rand(2, 1, 1, 1, device=device), torch.rand(9, device=device)
    bias = torch.randn(9, device=device)
    spec = spec_for(conv=conv)
    y = scaled_product(x, x_scale, Quantized(w, w_scale), bias, spec, BACKEND)
    assert torch.equal(y.cpu(), on_cpu(x, x_scale, w, w_scale, bias, spec))
    assert y._base is None
    assert torch.equal(BACKEND.product(x, w, spec).cpu(), TORCH.product(x.cpu(), w.cpu(), spec))


def test_steps_and_biases_that_are_expanded(device: str) -> None:
    torch.manual_seed(0)
    x, w = int8(6, 8, device=device), int8(5, 8, device=device)
    one = torch.tensor([0.3], device=device)
    y = int8_gemm(x, w, one.expand(6), one.expand(5), one.expand(5), "plain")
    assert torch.equal(y, int8_gemm(x, w, one.repeat(6), one.repeat(5), one.repeat(5), "plain"))


def test_transposed_operands(device: str) -> None:
    torch.manual_seed(0)
    x, w = int8(70, 5, device=device).t(), int8(70, 6, device=device).t()
    assert torch.equal(int8_gemm(x, w).cpu().long(), x.cpu().long() @ w.cpu().long().T)


def test_what_does_not_fit_is_refused(device: str) -> None:
    x = int8(3, 8, device=device)
    with pytest.raises(ValueError, match=r"no product of torch\.int8 \[3, 8\] and torch\.int8 \[4, 9\]"):
        int8_gemm(x, int8(4, 9, device=device))
    with pytest.raises(ValueError, match=r"no product of torch\.float32"):
        int8_gemm(x.float(), x)


@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")  # torch.compile
@pytest.mark.parametrize("preset", ["ternary_mean", "binary"])
@pytest.mark.parametrize("layer", ["linear", "conv"])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_training_has_the_bits_of_torch(
    make_quantizer: Callable[..., object], device: str, preset: str, layer: str, compiled: bool
) -> None:
    """Outputs to the bit, and gradients, eagerly and as an opaque operation of a compiled graph."""
    torch.manual_seed(0)
    quantizer = make_quantizer(preset)
    if layer == "linear":
        model, x = BitLinear(nn.Linear(40, 24), quantizer), torch.randn(3, 5, 40)  # type: ignore[arg-type]
    else:
        model, x = BitConv2d(nn.Conv2d(4, 8, 3), quantizer), torch.randn(2, 4, 6, 6)  # type: ignore[arg-type]
    model, x = model.to(device), x.to(device)
    other = copy.deepcopy(model)
    other.set_backend(BACKEND)
    run = torch.compile(other, backend="aot_eager", fullgraph=True) if compiled else other
    for autocast in (False, True):
        results = []
        for forward, owner in ((model, model), (run, other)):
            given = x.clone().requires_grad_()
            # cuDNN may choose an algorithm that computes with fractions
            with torch.backends.cudnn.flags(enabled=False):
                with torch.autocast(device, torch.bfloat16, enabled=autocast):
                    y = forward(given)
                y.square().sum().backward()
            results.append([y, given.grad, *(p.grad for p in owner.parameters())])
            owner.zero_grad()
        (y, *grads), (expected, *others) = results
        assert torch.equal(y, expected)
        for ours, theirs in zip(grads, others, strict=True):  # sums over outputs that lie elsewhere
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
