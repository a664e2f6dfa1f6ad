"""What follows the operations of torch sees those of the kernels, or torch's own in their place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from bitexp.kernels import KERNELS
from bitexp.kernels.gpu.layout import Packed
from bitexp.quant.layers import BitLinear
from bitexp.quant.norms import normalize
from bitexp.quant.spec import Norm
from tests.support.quantizers import MakeQuantizer

TRITON, REFERENCE = KERNELS.get("triton"), KERNELS.get("reference")


@pytest.fixture
def layer(device: str) -> tuple[Tensor, Packed, Tensor, Callable[[Tensor], Tensor]]:
    """Input, packed weights, bias, and the layer by `reference`."""
    torch.manual_seed(0)
    codes = torch.randint(-1, 2, (9, 70), dtype=torch.int8, device=device)
    scale, bias = torch.tensor(0.3, device=device), torch.randn(9, device=device)
    weights = REFERENCE.prepare(codes, scale)
    x = torch.randn(5, 70, device=device)
    return x, TRITON.prepare(codes, scale), bias, lambda x: REFERENCE.forward(x, weights, bias)


def test_gradients_transforms_and_traces_of_a_packed_layer(layer: tuple) -> None:
    x, prepared, bias, reference = layer
    assert isinstance(prepared, Packed)

    def ours(x: Tensor) -> Tensor:
        return TRITON.forward(x, prepared, bias)

    expected = reference(x)
    assert torch.equal(ours(x), expected)
    grads = []
    for function in (ours, reference):
        leaf = x.clone().requires_grad_()
        function(leaf).sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)
    assert torch.equal(torch.func.grad(lambda x: ours(x).sum())(x), grads[0])
    assert torch.equal(torch.vmap(ours)(x[:, None])[:, 0], expected)
    assert torch.equal(make_fx(ours)(torch.randn_like(x))(x), expected)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert ours(mode.from_tensor(x)).shape == expected.shape


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_a_norm_that_autograd_records_is_torch_s(layer: tuple, norm: Norm) -> None:
    x, prepared, bias, reference = layer
    leaf = x.clone().requires_grad_()
    y = TRITON.forward(leaf, prepared, bias, norm=norm)
    assert torch.equal(y, reference(normalize(x, norm, -1)[0]))
    assert y.grad_fn is not None


def test_traces_of_training_hold_the_products(make_quantizer: MakeQuantizer, device: str) -> None:
    """As opaque operations: started on fake tensors, a kernel would read addresses that are none."""
    layer = BitLinear(nn.Linear(40, 12), make_quantizer("ternary_mean")).to(device)
    layer.set_backend(TRITON.backend)
    x, other = torch.randn(2, 5, 40, device=device)
    layer.eval()
    with torch.no_grad():
        graph = make_fx(layer)(x)
        assert torch.equal(graph(other), layer(other))
    assert any("int8_gemm" in str(node.target) for node in graph.graph.nodes)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        assert layer(mode.from_tensor(x)).shape == (5, 12)
