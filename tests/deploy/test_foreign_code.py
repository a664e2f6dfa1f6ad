"""Frozen layers in networks that others wrote: what these ask of a layer, and what hangs on it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitexp.deploy import rehearsal
from bitexp.deploy.description import Description
from bitexp.deploy.frozen import FrozenLayer, freeze
from bitexp.deploy.packed_file import load_packed, read_packed, save_packed
from bitexp.deploy.rehearsal import rehearse
from bitexp.quant import quantize
from bitexp.quant.checks import FROZEN
from bitexp.quant.layers import BitLinear
from bitexp.quant.outside import WeightsRead
from tests.support.packed_files import REFERENCE, rewrite
from tests.support.quantizers import make_quantizer


class Network(nn.Module):
    """Two linear layers, and a way through them."""

    def __init__(self, way: Callable[[Network, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.way = nn.Linear(8, 8), nn.Linear(8, 8), way

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def called(net: Network, x: Tensor) -> Tensor:
    return net.b(net.a(x))


def quantized(way: Callable[[Network, Tensor], Tensor] = called) -> Network:
    torch.manual_seed(0)
    model = Network(way)
    quantize(model, make_quantizer("ternary_mean"))
    return model


X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def test_hooks_and_what_was_attached_survive_freezing() -> None:
    model, seen = quantized(), []
    layer = model.a
    layer.note, layer.child = "mine", nn.Tanh()
    layer.register_buffer("offset", torch.ones(1))
    layer.register_parameter("gain", nn.Parameter(torch.ones(8)))
    layer.register_forward_hook(lambda module, args, y: module.child(y * module.gain + module.offset))
    handles = [
        layer.register_forward_pre_hook(lambda *_: seen.append("before")),
        layer.register_full_backward_hook(lambda *_: seen.append("backward")),
    ]
    model.b.eval()
    expected = model(X.clone().requires_grad_())
    seen.clear()
    freeze(model)
    assert isinstance(model.a, FrozenLayer)
    assert (model.a.note, model.a.training, model.b.training) == ("mine", True, False)
    assert set(model.a.state_dict()) == {"packed", "scale", "bias", "gain", "offset"}
    y = model(X.clone().requires_grad_())
    assert torch.equal(y, expected)
    y.sum().backward()
    assert seen == ["before", "backward"]
    assert model.a.gain.grad is not None
    for handle in handles:
        handle.remove()
    model(X)
    assert len(seen) == 2


def test_names_that_a_frozen_layer_has_for_itself_are_refused_before_training() -> None:
    model = quantized()
    freeze(model)
    own = set(vars(model.a)) - set(vars(nn.Module())) - {"name", "in_features", "out_features"}
    assert {*own, *model.a._buffers} - {"bias"} <= set(FROZEN)
    other = Network(called)
    other.a.packed = "mine"
    with pytest.raises(ValueError, match="layer a: its attribute 'packed'"):
        quantize(other, make_quantizer("ternary_mean"))


def test_a_frozen_layer_says_what_its_weights_are() -> None:
    model = quantized()
    frozen = copy.deepcopy(model)
    freeze(frozen)
    for dtype in (torch.float32, torch.bfloat16):
        weight, latent = frozen.to(dtype).a.weight, model.to(dtype).a.weight
        for word in ("dtype", "device", "shape", "ndim"):
            assert getattr(weight, word) == getattr(latent, word)
        assert isinstance(weight, Tensor)
        assert (weight.size(), weight.numel(), len(repr(weight)) > 0) == ((8, 8), 64, True)
    already = model.bfloat16()
    freeze(already)
    assert already.a.weight.dtype == torch.bfloat16


COMPUTED: dict[str, Callable[[Tensor], object]] = {
    "linear": lambda w: F.linear(X, w),
    "mean": lambda w: w.abs().mean(),
    "detached": lambda w: w.detach(),
    "data": lambda w: w.data,
    "filled": lambda w: nn.init.normal_(w),
}


@pytest.mark.parametrize("how", COMPUTED)
def test_a_frozen_layer_has_no_weights_to_compute_with(how: str) -> None:
    model = quantized()
    freeze(model)
    with pytest.raises(WeightsRead, match="the frozen layer 'a' has no weights to compute with"):
        COMPUTED[how](model.a.weight)


def test_an_encoder_of_torch_computes_the_same_frozen() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    x = torch.randn(2, 5, 8)
    quantize(model, make_quantizer("ternary_mean"), exclude=["*.self_attn"], example=x)
    with torch.no_grad():
        expected = model(x)
        freeze(model)
        assert torch.equal(model(x), expected)


def test_layers_in_a_list_besides_are_frozen_with_the_rest() -> None:
    model = quantized(lambda net, x: net.parts[1](net.parts[0](x)))
    model.parts = [model.a, model.b]
    expected = model(X)
    frozen = freeze(model)
    assert model.parts == [frozen["a"], frozen["b"]] == [model.a, model.b]
    assert all(type(layer) is FrozenLayer for layer in model.parts)
    assert torch.equal(model(X), expected)


def test_a_network_whose_frozen_form_computes_the_same_passes() -> None:
    model = quantized().train()
    state = copy.deepcopy(model.state_dict())
    rehearse(model, lambda model: model(X))
    assert model.training
    assert isinstance(model.a, BitLinear)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


OTHERWISE: dict[str, tuple[Callable[[Network, Tensor], Tensor], str]] = {
    "insides": (lambda net, x: called(net, x) * net.b.mix, "cannot be frozen: .*'mix'"),
    "weights": (lambda net, x: called(net, x) * net.b.weight.detach().mean(), "the frozen layer 'b' has no"),
    "another way": (
        lambda net, x: called(net, x) if isinstance(net.b, BitLinear) else net.a(x), "^b: .*another way",
    ),
    "another input": (
        lambda net, x: called(net, x if isinstance(net.a, BitLinear) else x * -1), "^a: frozen, the layer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", OTHERWISE)
def test_a_network_whose_frozen_form_would_not_is_refused_by_the_layers_name(how: str) -> None:
    way, words = OTHERWISE[how]
    with pytest.raises(ValueError, match=words):
        rehearse(quantized(way), lambda model: model(X))


def test_a_run_rehearses_before_it_trains(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, outputs: Path
) -> None:
    def failing(*_: object) -> None:
        raise ValueError("body.0: frozen, the layer computes something else")

    monkeypatch.setattr("bitexp.run.build.rehearse", failing)
    with pytest.raises(Exception, match=r"body\.0: frozen"):
        train()
    assert not outputs.exists()
    assert rehearsal.rehearse is not failing


def test_versions_of_a_state_are_kept_and_old_files_without_them_are_read(tmp_path: Path) -> None:
    arguments = {"shape": (3, 32, 32), "classes": 5, "arch": "mnasnet0_5", "stem": "imagenet"}
    description = Description("torchvision", arguments, "ternary_mean", exclude=["layers.0", "classifier"])
    model, path = description.build().eval(), tmp_path / "packed.safetensors"
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        freeze(model)
        save_packed(path, model, description)
        versions = read_packed(path)[0]["versions"]
        assert (versions[""], versions["layers.1"]) == (2, 2)  # torchvision's, and that of a batch norm
        assert torch.equal(load_packed(path, REFERENCE)[0](x), expected)
        rewrite(path, path.read_bytes(), lambda header, _: header.pop("versions"))
        assert torch.equal(load_packed(path, REFERENCE)[0](x), expected)
