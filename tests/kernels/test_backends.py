"""What a layer holds of a kernel: steps on transformed inputs, wide sums, rounding, one for each layer."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from bitexp.kernels import KERNELS
from bitexp.kernels.cpu.training import CpuBackend
from bitexp.quant.backend import TORCH, Call
from bitexp.quant.convert import quantize
from bitexp.quant.layers import BitLinear, QuantizedLayer, quantized_layers, set_backend
from bitexp.quant.modes import has_vnni
from tests.support.quantizers import MakeQuantizer

pytestmark = pytest.mark.skipif(
    KERNELS.get("cpu").unavailable("cpu") is not None or not has_vnni(), reason="no numba, or no VNNI"
)

ROTATED = {"transform": {"name": "hadamard", "applies_to": "activations"}}
TRANSFORMED: dict[str, dict[str, Any]] = {
    "rotated": ROTATED,
    "weights rotated too": {"transform": {"name": "hadamard", "applies_to": "both"}},
    "sparse": {"sparsifier": {"name": "top_k", "keep": 0.5}},
    "rotated, sparse, by channel": {
        **ROTATED,
        "sparsifier": {"name": "top_k", "keep": 0.5},
        "weights": {"granularity": "channel"},
    },
    "rotated, 128 levels, scaled bias": {**ROTATED, "activations": {"qmax": 128}, "bias": "scaled"},
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class Watched(CpuBackend):
    """The backend, and the calls that it computed whole."""

    def __init__(self) -> None:
        self.forwards: list[Call] = []
        self.backwards: list[Call] = []

    def forward(
        self, x: Tensor, bias: Tensor | None, w_codes: Tensor, w_scale: Tensor, call: Call
    ) -> tuple[Any, ...]:
        self.forwards.append(call)
        return super().forward(x, bias, w_codes, w_scale, call)

    def backward(self, grad: Tensor, x: Tensor | None, saved: Any, *rest: Any) -> Any:
        self.backwards.append(rest[2])
        assert x is None  # no norm of the backend's to go back through
        return super().backward(grad, x, saved, *rest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
@pytest.mark.parametrize("changes", TRANSFORMED)
def test_a_step_on_transformed_inputs_is_that_of_torch(
    make_quantizer: MakeQuantizer, changes: str, norm: str, dtype: torch.dtype
) -> None:
    """The layer takes the norm and transforms its input; the backend gets a spec without a norm."""
    layer = BitLinear(nn.Linear(64, 20), make_quantizer("ternary_mean", norm=norm, **TRANSFORMED[changes]))
    fused, backend = copy.deepcopy(layer), Watched()
    fused.set_backend(backend)
    results = []
    x, out_grad = 2 * torch.randn(7, 64) + 1, torch.randn(7, 20)
    for one in (fused, layer):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = one(leaf)
        assert y.dtype == dtype
        results.append((y, *torch.autograd.grad(y, [leaf, *one.parameters()], out_grad.to(dtype))))
    assert [call.spec.norm for call in backend.forwards] == ["none"]
    assert [call.spec.norm for call in backend.backwards] == ["none"]
    assert fused.spec.norm == norm
    assert torch.equal(results[0][0], results[1][0])
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for ours, theirs in zip(*(r[1:] for r in results), strict=True):
        assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


def test_codes_of_the_layer_and_shifted_weights_go_by_torch(make_quantizer: MakeQuantizer) -> None:
    backend = Watched()
    for preset, changes in (
        ("ternary_int4", {}),
        ("ternary_hadamard", {}),
        ("lsq", {"weights": {"bits": 2}}),
    ):
        layer = BitLinear(nn.Linear(64, 20), make_quantizer(preset, norm="none", **changes))
        expected, x = copy.deepcopy(layer), torch.randn(5, 64, requires_grad=True)
        layer.set_backend(backend)
        fused = layer.spec.absmax is not None and not layer.spec.shift
        y = layer(x)
        assert torch.equal(y, expected(x))
        y.sum().backward()
        assert len(backend.forwards) == fused
        backend.forwards.clear()


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_step_on_wide_sums_has_the_bits_of_torch(make_quantizer: MakeQuantizer, granularity: str) -> None:
    """8-bit weights on 2,079 inputs: the int32 sum is rounded once."""
    quantizer = make_quantizer("int", weights={"bits": 8, "granularity": granularity}, norm="none")
    layer = BitLinear(nn.Linear(2079, 9), quantizer)
    with torch.no_grad():
        layer.weight.copy_(0.9 + torch.rand_like(layer.weight) / 10)
    assert layer.spec.wide
    fused, backend = copy.deepcopy(layer), Watched()
    fused.set_backend(backend)
    x = torch.cat([torch.full((1, 2079), 3.3), 0.9 + torch.rand(6, 2079) / 10])
    y = fused(x)
    assert torch.equal(y, layer(x))
    assert len(backend.forwards) == 1
    codes, scale, _ = layer.quantized()
    sums = (torch.full((1, 2079), 127).long() @ codes.long().t()).float()
    x_scale = torch.tensor(3.3) / 127
    assert int(sums.max()) > 2**24
    assert torch.equal(y[:1], sums * (x_scale * scale) + layer.bias)


def test_a_backend_is_one_layer_s(make_quantizer: MakeQuantizer) -> None:
    """Two models of one quantizer: what is set on one leaves the other alone."""
    quantizer = make_quantizer("ternary_median")
    models = [nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 4)) for _ in range(2)]
    for model in models:
        quantize(model, quantizer)
    first, second = models
    backend = CpuBackend()
    set_backend(first, backend)
    for layer in quantized_layers(first).values():
        assert layer.backend is backend
        assert layer.parts.weights.backend is backend
    for layer in quantized_layers(second).values():
        assert layer.backend is TORCH
        assert layer.parts.weights.backend is TORCH
    set_backend(second, backend)
    set_backend(first, TORCH)
    assert {type(layer.parts.weights.backend) for layer in layers(second)} == {CpuBackend}
    assert {layer.parts.weights.backend for layer in layers(first)} == {TORCH}


def layers(model: nn.Module) -> Iterator[QuantizedLayer]:
    yield from quantized_layers(model).values()


def test_a_layer_s_copy_has_its_own_parts_and_rounds_by_them(make_quantizer: MakeQuantizer) -> None:
    layer = BitLinear(nn.Linear(8, 6), make_quantizer("lsq"))
    twin = copy.deepcopy(layer)
    assert twin.active is twin.parts
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in layer.parameters()}
    with torch.no_grad():
        for parameter in twin.parts.parameters():
            parameter.mul_(3)
    assert torch.equal(twin.quantized().scale, 3 * layer.quantized().scale)


@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")  # torch.compile
@pytest.mark.parametrize("preset", ["ternary_mean", "lsq", "ternary_hadamard"])
def test_a_compiler_follows_a_new_layer(make_quantizer: MakeQuantizer, preset: str) -> None:
    torch.compiler.reset()
    layer = BitLinear(nn.Linear(64, 8), make_quantizer(preset))
    layer.set_backend(CpuBackend())
    x = torch.randn(5, 64)
    y = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    torch.compiler.reset()
    assert_close(y, layer(x), rtol=1e-5, atol=1e-5)


def test_a_counter_of_operations_sees_the_products(make_quantizer: MakeQuantizer) -> None:
    layer = BitLinear(nn.Linear(64, 8), make_quantizer("ternary_mean"))
    layer.set_backend(CpuBackend())
    x = torch.randn(5, 64, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() >= 2 * 2 * 5 * 64 * 8  # the backward's two at least
