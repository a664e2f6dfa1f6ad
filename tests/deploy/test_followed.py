"""Networks under what follows torch: trained, in evaluation and frozen, by every kernel, the same numbers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from bitexp.deploy.frozen import freeze
from bitexp.kernels import KERNELS
from bitexp.quant import quantize, set_backend
from bitexp.quant.outside import WeightsRead
from tests.support.kernels import every_kernel

FORMS = ["training", "evaluation", "frozen"]
X, OTHER = (torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))

Followed = Callable[[nn.Module], Callable[[Tensor], Tensor]]


def network(form: str, kernel: str) -> nn.Module:
    """A convolution and two linear layers."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 8)
    )
    quantize(model, "ternary_mean")
    set_backend(model, KERNELS.get(kernel).backend)
    if form == "frozen":
        freeze(model, kernel=KERNELS.get(kernel))
    return model.train(form == "training")


def traced(model: nn.Module) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is old
        function: Callable[[Tensor], Tensor] = torch.jit.trace(model, (X,), check_trace=False)
    return function


WAYS: dict[str, Followed] = {
    "trace": traced,
    "make_fx": lambda model: make_fx(model)(X),
    "export": lambda model: torch.export.export(model, (X,)).module(),
    "compile": lambda model: torch.compile(model, fullgraph=True, backend="eager"),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's compiler
@every_kernel
@pytest.mark.parametrize("recorded", [False, True], ids=["no graph", "graph"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", WAYS)
def test_a_program_computes_what_the_network_does(way: str, form: str, kernel: str, recorded: bool) -> None:
    torch._dynamo.reset()
    model = network(form, kernel)
    with torch.set_grad_enabled(recorded):
        function = WAYS[way](model)
        for x in (X, OTHER):
            if form == "training":  # whose norm may be another
                assert_close(function(x), model(x))
            else:
                assert torch.equal(function(x), model(x))


@every_kernel
@pytest.mark.parametrize("form", FORMS)
def test_shapes_are_found_without_numbers(form: str, kernel: str) -> None:
    model = network(form, kernel)
    with torch.no_grad():
        assert copy.deepcopy(model).to("meta")(X.to("meta")).shape == (3, 8)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            fake = {name: mode.from_tensor(value) for name, value in state.items()}
            assert functional_call(model, fake, (mode.from_tensor(X),)).shape == (3, 8)


@every_kernel
@pytest.mark.parametrize("form", FORMS)
def test_functional_transforms_are_those_of_the_network(form: str, kernel: str) -> None:
    model = network(form, kernel)
    with torch.no_grad():
        expected = torch.cat([model(x[None]) for x in X])
        assert_close(torch.vmap(lambda x: model(x[None])[0])(X), expected)
    leaf = X.clone().requires_grad_()
    expected = torch.autograd.grad(model(leaf).square().sum(), leaf)[0]
    found = torch.func.grad(lambda x: model(x).square().sum())(X)
    assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["compile", "export"])
@pytest.mark.parametrize("form", ["quantized", "frozen"])
def test_an_encoder_that_is_followed_calls_its_layers(form: str, way: str) -> None:
    torch._dynamo.reset()
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    quantize(model, "ternary_mean", exclude=["self_attn"], example=x)
    if form == "frozen":
        freeze(model)
    with torch.no_grad():
        if way == "compile":
            assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))
        else:
            assert_close(torch.export.export(model, (x,)).module()(x), model(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_network_that_reads_weights_is_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.layer.weight

    torch._dynamo.reset()
    model = Net()
    quantize(model, "ternary_mean")
    with pytest.raises((WeightsRead, torch._dynamo.exc.Unsupported)):
        torch.compile(model, backend="eager", fullgraph=True)(torch.randn(2, 8))
