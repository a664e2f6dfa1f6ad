"""What a user made of a layer before it is quantized: it survives, or it is refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, remove_spectral_norm, spectral_norm

from bitexp.deploy.frozen import freeze, freeze_layer
from bitexp.kernels import KERNELS
from bitexp.quant.convert import quantize
from bitexp.quant.layers import BitConv2d, BitLinear
from tests.support.quantizers import MakeQuantizer as Make


class Tripled(nn.Linear):
    """Whose own code is more than a linear layer's."""

    def forward(self, input: Tensor) -> Tensor:
        return 3 * super().forward(input)


class Padded(nn.Conv2d):
    """Likewise."""


@pytest.mark.parametrize("layer", [Tripled(8, 8), Padded(8, 8, 1)], ids=["Linear", "Conv2d"])
def test_subclasses_are_refused_by_name_unless_they_are_excluded(
    make_quantizer: Make, layer: nn.Module
) -> None:
    model = nn.Sequential(nn.Linear(8, 8), layer)
    with pytest.raises(ValueError, match=rf"^1: it is a {type(layer).__name__}, .*; exclude it"):
        quantize(model, make_quantizer("ternary_mean"))
    assert type(model[0]) is nn.Linear
    assert quantize(model, make_quantizer("ternary_mean"), exclude=["1"]).body == ["0"]
    assert model[1] is layer


def test_a_subclass_that_nothing_takes_the_place_of_is_none_to_refuse(make_quantizer: Make) -> None:
    model = nn.Sequential(Tripled(8, 8))
    assert quantize(model, make_quantizer("full")).body == ["0"]
    assert type(model[0]) is Tripled


def test_a_forward_that_was_put_in_place_of_the_layers_own_is_refused(make_quantizer: Make) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    forward = model[0].forward
    model[0].forward = lambda input: 3 * forward(input)
    with pytest.raises(ValueError, match=r"^0: its forward was replaced"):
        quantize(model, make_quantizer("ternary_mean"))


def test_hooks_stay_and_their_handles_remove_them(make_quantizer: Make) -> None:
    model, seen = nn.Sequential(nn.Linear(8, 8)), list[str]()

    def hook(name: str) -> Callable[..., None]:
        return lambda *_: seen.append(name)

    layer = model[0]
    handles = [
        layer.register_forward_pre_hook(hook("before")),
        layer.register_forward_hook(hook("after")),
        layer.register_full_backward_pre_hook(hook("backward before")),
        layer.register_full_backward_hook(hook("backward")),
        layer.register_state_dict_post_hook(hook("state")),
        layer.register_load_state_dict_post_hook(hook("load")),
    ]
    layer.register_forward_hook(lambda module, args, y: y + 100)
    quantize(model, make_quantizer("ternary_mean"))
    assert isinstance(model[0], BitLinear)
    y = model(torch.randn(3, 8, requires_grad=True))
    assert float(y.detach().min()) > 50
    y.sum().backward()
    model.load_state_dict(model.state_dict())
    assert seen == ["before", "after", "backward before", "backward", "state", "load"]
    for handle in handles:
        handle.remove()
    model(torch.randn(3, 8)).sum().backward()
    model.load_state_dict(model.state_dict())
    assert len(seen) == 6


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["ternary_mean", "full_norm"])
def test_the_training_flag_stays(make_quantizer: Make, name: str, training: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Conv2d(8, 8, 1))
    model[0].train(training)
    model[1].train(not training)
    quantize(model, make_quantizer(name))
    assert [layer.training for layer in model] == [training, not training]


LINEAR = ("in_features", "out_features")
CONV = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode",
)  # fmt: skip


@pytest.mark.parametrize("name", ["ternary_mean", "full_norm"])
def test_layers_say_what_they_are_and_take_the_input_by_its_name(make_quantizer: Make, name: str) -> None:
    conv = nn.Conv2d(4, 8, (3, 1), stride=2, padding=1, dilation=(2, 1), groups=2)
    for plain, kind, words in ((nn.Linear(6, 5), BitLinear, LINEAR), (conv, BitConv2d, CONV)):
        twins: list[nn.Module] = [kind(plain, make_quantizer(name))]  # type: ignore[arg-type]
        if name != "full_norm":
            twins.append(freeze_layer(twins[0], "auto", KERNELS.get("reference")))  # type: ignore[arg-type]
        x = torch.randn(2, 6) if kind is BitLinear else torch.randn(2, 4, 9, 9)
        for twin in twins:
            assert {w: getattr(twin, w) for w in words} == {w: getattr(plain, w) for w in words}
            assert torch.equal(twin(input=x), twin(x))


def test_what_else_was_attached_stays(make_quantizer: Make) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    layer = model[0]
    layer.note, layer.child = "mine", nn.Tanh()
    layer.register_buffer("seen", torch.ones(1))
    layer.register_buffer("fleeting", torch.ones(1), persistent=False)
    layer.register_parameter("gain", nn.Parameter(torch.ones(8)))
    layer.register_forward_hook(lambda module, args, y: module.child(y * module.gain))
    state = set(layer.state_dict())
    quantize(model, make_quantizer("ternary_mean"))
    twin = model[0]
    assert twin.note == "mine"
    assert (twin.seen is layer.seen, twin.fleeting is layer.fleeting) == (True, True)
    assert set(twin.state_dict()) == state
    assert float(model(torch.randn(3, 8)).detach().abs().max()) <= 1
    model(torch.randn(3, 8)).sum().backward()
    assert twin.gain.grad is not None


def test_an_attribute_that_the_quantized_layer_needs_for_itself_is_refused(make_quantizer: Make) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].options = "mine"
    with pytest.raises(ValueError, match=r"^layer 0: its attribute 'options'"):
        quantize(model, make_quantizer("ternary_mean"))
    assert model[0].options == "mine"


def pruned(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", 0.5)


TAKEN_OFF: dict[str, tuple[Callable[[nn.Module], nn.Module], Callable[[nn.Module], object]]] = {
    "weight_norm": (
        parametrizations.weight_norm, lambda layer: parametrize.remove_parametrizations(layer, "weight"),
    ),
    "spectral_norm": (spectral_norm, remove_spectral_norm),
    "prune": (pruned, lambda layer: prune.remove(layer, "weight")),
}  # fmt: skip


@pytest.mark.parametrize("kind", TAKEN_OFF)
def test_weights_that_are_computed_are_refused_with_the_order_that_works(
    make_quantizer: Make, kind: str
) -> None:
    put_on, take_off = TAKEN_OFF[kind]
    model, quantizer, x = nn.Sequential(nn.Linear(8, 8)), make_quantizer("ternary_mean"), torch.randn(3, 8)
    put_on(model[0])
    with pytest.raises(ValueError, match=r"^0: its weight is computed and no parameter"):
        quantize(model, quantizer)
    with pytest.raises(ValueError, match=r"^its weight is computed and no parameter"):
        BitLinear(model[0], quantizer)

    take_off(model[0])
    quantize(model, quantizer)
    assert isinstance(model[0].weight, nn.Parameter)
    put_on(model[0])
    model(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    kept = copy.deepcopy(model.eval().state_dict())
    expected = model(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.load_state_dict(kept)
    assert torch.equal(model(x), expected)
    freeze(model)
    assert torch.equal(model(x), expected)


def test_weights_that_do_not_exist_yet_or_are_complex_are_refused(make_quantizer: Make) -> None:
    for layer, reason in (
        (nn.LazyLinear(4), "run the model once"),
        (nn.Linear(4, 4, dtype=torch.cfloat), "real"),
    ):
        with pytest.raises(ValueError, match=f"^0: .*{reason}"):
            quantize(nn.Sequential(layer), make_quantizer("ternary_mean"))
