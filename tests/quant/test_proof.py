"""The proof of a conversion: all quantized layers are called, and nobody multiplies by weights past one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as modules

from bitexp.quant import quantize
from bitexp.quant.convert import Conversion
from bitexp.quant.layers import BitLinear
from bitexp.quant.outside import WeightsRead
from bitexp.quant.proof import prove
from tests.support.quantizers import make_quantizer

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Two linear layers, and a way through them; `parts` holds what torch does not see."""

    def __init__(self, way: Callable[[Network, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.way, self.parts = way, [nn.Linear(8, 8)]

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def called(net: Network, x: Tensor) -> Tensor:
    return net.b(net.a(x))


def converted(model: nn.Module, exclude: tuple[str, ...] = (), example: object = X) -> Conversion:
    return quantize(model, make_quantizer("ternary_mean"), exclude=exclude, example=example)


def test_a_model_that_calls_every_layer_is_proven_and_left_as_it_was() -> None:
    model = Network(called).train()
    model.b.eval()
    assert converted(model).body == ["a", "b"]
    assert [module.training for module in (model, model.a, model.b)] == [True, True, False]
    assert not modules._global_forward_hooks
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("example", [(X, X), {"x": X, "y": X}], ids=["tuple", "mapping"])
def test_an_example_may_have_several_arguments(example: object) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.layer(x + y)

    assert converted(Two(), example=example).body == ["layer"]


READS: dict[str, Callable[[Network, Tensor], Tensor]] = {
    "nothing": lambda net, x: net.a(x),
    "linear": lambda net, x: net.a(F.linear(x, net.b.weight, net.b.bias)),
    "matmul": lambda net, x: net.a(x) @ net.b.weight.t(),
    "right matmul": lambda net, x: (net.b.weight @ net.a(x).t()).t(),
    "einsum": lambda net, x: torch.einsum("bi,oi->bo", net.a(x), net.b.weight),
    "a half": lambda net, x: net.a(x) @ torch.cat([net.b.weight[:4], net.b.weight[4:]]),
    "beside a call": lambda net, x: net.b(net.a(x)) @ net.b.weight,
}


@pytest.mark.parametrize("way", READS)
def test_layers_that_are_passed_by_are_named(way: str) -> None:
    with pytest.raises(ValueError, match=r"^b: the model reads these weights without calling the layer"):
        converted(Network(READS[way]))
    assert not modules._global_forward_hooks
    assert converted(Network(READS[way]), exclude=("b",)).kept == ["b.weight"]


@pytest.mark.parametrize("way", [way for way in READS if way != "nothing"])
def test_without_an_example_the_first_forward_refuses_them_by_name(way: str) -> None:
    model = Network(READS[way])
    converted(model, example=None)
    for mode in (True, False):
        with pytest.raises(WeightsRead, match="weights of the quantized layer 'b' are multiplied past it"):
            model.train(mode)(X)


def test_a_forward_that_fails_leaves_nothing_behind() -> None:
    model = Network(called)
    converted(model, example=None)
    with pytest.raises(RuntimeError):
        prove(model, torch.randn(3, 5))
    assert model.training
    assert not modules._global_forward_hooks


def test_weights_may_be_looked_at() -> None:
    seen: list[object] = []

    def way(net: Network, x: Tensor) -> Tensor:
        weight = net.a.weight
        x = x.to(weight.dtype).to(weight.device)
        seen.extend([weight.dtype, weight.device, weight.shape, weight.size(0), isinstance(weight, Tensor)])
        return called(net, x)

    model = Network(way)
    converted(model)
    assert seen == [torch.float32, torch.device("cpu"), torch.Size([8, 8]), 8, True]


def test_outside_of_a_forward_weights_are_the_parameters() -> None:
    model = Network(called)
    given = [model.a.weight, model.b.weight]
    converted(model)
    assert model.a.weight is given[0]
    assert model.get_parameter("b.weight") is given[1]
    nn.init.normal_(model.a.weight)
    assert F.linear(X, model.a.weight).requires_grad
    assert model.a.weight.abs().mean().item() > 0


def test_hooks_and_penalties_in_a_forward_may_compute_on_weights_alone() -> None:
    def way(net: Network, x: Tensor) -> Tensor:
        return called(net, x) + 0.1 * (net.a.weight @ net.a.weight.t() - torch.eye(8)).square().mean()

    model, norms = Network(way), []
    converted(model, example=None)
    model.a.register_forward_hook(lambda layer, *_: norms.append(float(layer.weight.detach().norm())))
    model(X).sum().backward()
    assert norms == [pytest.approx(float(model.a.weight.detach().norm()))]
    alone = model.a.weight.grad.clone()
    model.zero_grad()
    model.way = called
    model(X).sum().backward()
    assert not torch.equal(alone, model.a.weight.grad)


def test_layers_in_a_list_besides_are_quantized_with_the_rest() -> None:
    def way(net: Network, x: Tensor) -> Tensor:
        for layer in net.parts:
            x = layer(x)
        return x

    model = Network(way)
    model.parts = [model.a, model.b]
    converted(model)
    assert all(isinstance(layer, BitLinear) for layer in model.parts)
    assert torch.equal(model(X), called(model, X))


def test_layers_that_only_a_list_holds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^the model calls Linear\(.*nn\.ModuleList"):
        converted(Network(lambda net, x: net.parts[0](called(net, x))))


@pytest.mark.parametrize("shared", [False, True], ids=["layers", "layers and a head of the same weights"])
def test_tied_weights_may_be_read_where_they_are_kept(shared: bool) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.layer = nn.Embedding(5, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 5, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, words: Tensor) -> Tensor:
            x = self.layer(self.embed(words))
            return self.head(x) if shared else F.linear(x, self.embed.weight)

    model = Tied()
    exclude = ("embed",) if shared else ("embed", "head")
    assert ("head" in converted(model, exclude, torch.tensor([[1, 2]])).body) == shared
    assert model.head.weight is model.embed.weight


ATTENTIONS = [
    f"features.{stage}.{block}.attn"
    for stage, depth in ((1, 2), (3, 2), (5, 6), (7, 2))
    for block in range(depth)
]


def test_swin_of_torchvision_is_refused_by_name() -> None:
    from torchvision.models import swin_t

    kept = ("features.0.0", "head", "*.relative_position_bias_table")
    with pytest.raises(ValueError, match="without calling the layer") as refused:
        converted(swin_t(num_classes=10), kept, torch.randn(1, 3, 32, 32))
    missed = str(refused.value).partition(": ")[0].split(", ")
    assert missed == [f"{name}.{layer}" for name in ATTENTIONS for layer in ("qkv", "proj")]


def test_swin_with_its_attention_in_full_precision_is_proven() -> None:
    from torchvision.models import swin_t

    conversion = converted(
        swin_t(num_classes=10), ("features.0.0", "head", "*.attn"), torch.randn(1, 3, 32, 32)
    )
    assert len(conversion.body) == 12 * 2 + 3


@pytest.mark.parametrize("layers", [1, 2])
def test_the_fast_path_of_an_encoder_is_left_for_the_quantized_layers(layers: int) -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), layers)
    x = torch.randn(2, 5, 8)
    converted(model, ("*.self_attn",), x)
    calls: list[nn.Module] = []
    with torch.no_grad():
        for layer in model.eval().layers:  # one with hooks has no fast path
            layer.linear1.register_forward_hook(lambda layer, *_: calls.append(layer))
        expected = model(x)
        for layer in model.layers:
            layer.linear1._forward_hooks.clear()
        assert calls == [layer.linear1 for layer in model.layers]
        assert torch.equal(model(x), expected)


def test_an_output_projection_that_attention_reads_is_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.attention.out_proj = nn.Linear(8, 8)  # its own is a subclass, which is refused already

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    x = torch.randn(2, 5, 8)
    with pytest.raises(ValueError, match=r"^attention\.out_proj: the model reads"):
        converted(Net(), ("*.in_proj_weight",), x)
    for mode in (True, False):
        model = Net().train(mode)
        converted(model, ("*.in_proj_weight",), None)
        with (
            pytest.raises(WeightsRead, match=r"'attention\.out_proj' are multiplied past it"),
            torch.no_grad(),
        ):
            model(x)


def test_the_names_that_an_error_asks_for_are_patterns() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.embed, self.layer = nn.Embedding(5, 8), nn.Embedding(5, 8), nn.Linear(8, 8)
            self.embed.weight = self.shared.weight

        def forward(self, words: Tensor) -> Tensor:
            return self.layer(self.embed(words))

    with pytest.raises(ValueError, match="would stay in full precision") as refused:
        converted(Tied(), example=None)
    named = str(refused.value).partition(" would")[0].split(", ")
    assert named == ["shared.weight", "embed.weight"]
    assert converted(Tied(), tuple(named), torch.tensor([1, 2])).kept == named
