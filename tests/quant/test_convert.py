"""Conversion: what is replaced, what stays, what is refused, and the proof that it took."""

from __future__ import annotations

import copy
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitexp.quant.convert import quantize
from bitexp.quant.layers import BitConv2d, BitLinear, QuantizedLayer, quantized_layers
from bitexp.quant.patterns import matches
from tests.support.quantizers import MakeQuantizer as Make


class Block(nn.Module):
    """A norm that feeds two linears, as before an attention, and one without a norm of its own."""

    prenorm: ClassVar[dict[str, str]] = {"q": "norm", "k": "norm"}

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.q, self.k, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        return x + self.out(self.q(normed) * self.k(normed))


class Network(nn.Module):
    """An embedding, a convolution, two blocks, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 8)
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, 5)

    def forward(self, image: Tensor, word: Tensor) -> Tensor:
        x = self.conv(image).mean((-2, -1)) + self.embed(word)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def run(model: nn.Module) -> Tensor:
    """One forward of `Network`."""
    draw = torch.Generator().manual_seed(1)
    return model(torch.randn(3, 1, 4, 4, generator=draw), torch.tensor([0, 1, 4]))


def body_of(model: nn.Module) -> list[str]:
    """The dotted names of the quantized layers that a model has now."""
    return sorted(n for n, m in model.named_modules() if isinstance(m, QuantizedLayer))


BLOCKS = [f"blocks.{i}.{layer}" for i in (0, 1) for layer in ("k", "out", "q")]


@pytest.mark.parametrize(
    ("include", "exclude", "body", "kept"),
    [
        (["*"], ["embed"], [*BLOCKS, "conv", "head"], ["embed.weight"]),
        (
            ["*"],
            ["embed", "head", "conv"],
            BLOCKS,
            ["embed.weight", "conv.weight", "head.weight"],
        ),
        (
            ["blocks.1", "head"],
            ["embed", "conv", "blocks.0"],
            [*BLOCKS[3:], "head"],
            ["embed.weight", "conv.weight", *(f"blocks.0.{n}.weight" for n in ("q", "k", "out"))],
        ),
        (
            ["*.out"],
            ["embed", "conv", "head", "*.[qk]"],
            ["blocks.0.out", "blocks.1.out"],
            [
                "embed.weight",
                "conv.weight",
                *(f"blocks.{i}.{n}.weight" for i in (0, 1) for n in "qk"),
                "head.weight",
            ],
        ),
    ],
)
def test_patterns_choose_the_layers(
    make_quantizer: Make, include: list[str], exclude: list[str], body: list[str], kept: list[str]
) -> None:
    model = Network()
    conversion = quantize(model, make_quantizer("ternary_mean"), include, exclude)
    assert conversion.body == body_of(model) == sorted(body)
    assert conversion.kept == kept
    assert isinstance(model.conv, BitConv2d) == ("conv" in body)
    assert isinstance(model.head, BitLinear) == ("head" in body)
    run(model).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("blocks.0.q", "blocks", True),
        ("blocks.0.q", "blocks.0", True),
        ("blocks.0.q", "*.q", True),
        ("blocks.0.q", "q", False),
        ("blocks.0.q", "block", False),
        ("blocks.0.q", "blocks.0.q.weight", False),
        ("head", "Head", False),
        ("a[0]", "a[0]", True),
        ("a[0].q", "a[0]", True),
        ("a0", "a[0]", True),
        ("a[1]", "a[0]", False),
    ],
)
def test_a_pattern_covers_a_module_and_all_below_it(name: str, pattern: str, expected: bool) -> None:
    assert matches(name, [pattern]) is expected


def test_a_name_with_characters_of_patterns_can_be_excluded(make_quantizer: Make) -> None:
    model = nn.ModuleDict({"a[0]": nn.Linear(4, 4), "a[1]": nn.Linear(4, 4), "b*": nn.Linear(4, 4)})
    conversion = quantize(model, make_quantizer("ternary_mean"), ["*"], ["a[0]", "b*"])
    assert conversion.body == ["a[1]"]
    assert conversion.kept == ["a[0].weight", "b*.weight"]


def test_parameters_are_taken_over_as_they_are(make_quantizer: Make) -> None:
    model = Network()
    before = {n: p for n, p in model.named_parameters() if "norm" not in n}
    quantize(model, make_quantizer("ternary_mean"), ["*"], ["embed"])
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


@pytest.mark.parametrize("name", ["ternary_mean", "binary", "full_norm"])
def test_a_norm_right_before_quantized_layers_becomes_their_own(make_quantizer: Make, name: str) -> None:
    model = Block()
    quantize(model, make_quantizer(name, norm="layer"), ["*"], [])
    assert isinstance(model.norm, nn.Identity)
    x = torch.randn(4, 8)
    expected = x + model.out(model.q(x) * model.k(x))
    assert torch.equal(model(x), expected)


def test_without_an_inner_norm_the_norm_of_the_block_stays(make_quantizer: Make) -> None:
    model = Network()
    norms = [block.norm for block in model.blocks]
    quantize(model, make_quantizer("ternary_mean", norm="none"), ["*"], ["embed"])
    assert [block.norm for block in model.blocks] == norms


def test_a_norm_that_also_feeds_a_layer_in_full_precision_stays(make_quantizer: Make) -> None:
    model = Network()
    norm = model.blocks[0].norm
    quantize(model, make_quantizer("ternary_mean"), ["*"], ["embed", "blocks.0.k"])
    assert model.blocks[0].norm is norm
    assert isinstance(model.blocks[1].norm, nn.Identity)


def test_a_module_that_stands_in_two_places_stays_one_module(make_quantizer: Make) -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Sequential(shared))
    conversion = quantize(model, make_quantizer("ternary_mean"), ["*"], [])
    assert conversion.body == ["0", "2", "3.0"]
    assert isinstance(model[0], BitLinear)
    assert model[0] is model[2]
    assert model[0] is model[3][0]
    assert len(list(model.parameters())) == 2


def test_tied_parameters_stay_tied(make_quantizer: Make) -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 8), "head": nn.Linear(8, 5), "twin": nn.Linear(8, 5)})
    model["head"].weight = model["twin"].weight = model["embed"].weight
    quantize(model, make_quantizer("ternary_mean"), ["head", "twin"], ["embed"])
    assert body_of(model) == ["head", "twin"]
    assert model["head"].weight is model["embed"].weight
    assert model["twin"].weight is model["embed"].weight


@pytest.mark.parametrize(
    ("include", "exclude", "nearest"),
    [(["*"], ["embed", "haed"], "head"), (["block"], ["embed"], "blocks")],
)
def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_name(
    make_quantizer: Make, include: list[str], exclude: list[str], nearest: str
) -> None:
    with pytest.raises(ValueError, match=rf"Did you mean '{nearest}'\?"):
        quantize(Network(), make_quantizer("ternary_mean"), include, exclude)


def test_weights_that_would_silently_stay_in_full_precision_are_refused(make_quantizer: Make) -> None:
    with pytest.raises(ValueError, match=r"^embed\.weight would stay in full precision"):
        quantize(Network(), make_quantizer("ternary_mean"), ["*"], [])
    with pytest.raises(ValueError, match=r"conv\.weight, head\.weight would stay"):
        quantize(Network(), make_quantizer("ternary_mean"), ["blocks"], ["embed"])

    model = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 3))
    model.register_parameter("mixing", nn.Parameter(torch.ones(4, 4)))
    with pytest.raises(ValueError, match=r"mixing, 1\.weight would stay"):
        quantize(model, make_quantizer("ternary_mean"), ["*"], [])
    assert quantize(model, make_quantizer("ternary_mean"), ["*"], ["mixing", "1"]).body == ["0"]


@pytest.mark.parametrize("exclude", [[], ["embed"]])
def test_a_refused_conversion_leaves_the_model_as_it_was(make_quantizer: Make, exclude: list[str]) -> None:
    model = Network()
    model.head = nn.Sequential(nn.Linear(8, 132_105), nn.Linear(132_105, 5, device="meta"))
    modules = dict(model.named_modules())
    with pytest.raises(ValueError, match=r"^embed|^layer head\.1: "):
        quantize(model, make_quantizer("int", weights={"bits": 8}, activations={"qmax": 128}), ["*"], exclude)
    assert dict(model.named_modules()) == modules


def test_a_model_with_nothing_to_quantize_is_refused(make_quantizer: Make) -> None:
    quantizer = make_quantizer("ternary_mean")
    with pytest.raises(ValueError, match="no layer of Network is left to quantize"):
        quantize(Network(), quantizer, ["*"], ["*"])
    model = nn.Sequential(nn.Linear(4, 4))
    quantize(model, quantizer, ["*"], [])
    with pytest.raises(ValueError, match="no layer of Sequential is left to quantize"):
        quantize(model, quantizer, ["*"], [])


def test_a_model_that_is_a_single_layer_is_refused(make_quantizer: Make) -> None:
    with pytest.raises(ValueError, match="wrap it in a module"):
        quantize(nn.Linear(4, 4), make_quantizer("ternary_mean"), ["*"], [])


def test_errors_of_a_layer_name_it(make_quantizer: Make) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(4, 4, 3, padding="same"))
    with pytest.raises(ValueError, match=r"^layer 1: BitConv2d pads with zeros"):
        quantize(model, make_quantizer("ternary_mean"), ["*"], [])


@pytest.mark.parametrize("name", ["ternary_mean", "int"])
def test_groups_that_do_not_divide_the_inputs_of_a_layer_are_refused_before_anything_changes(
    make_quantizer: Make, name: str
) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    groups = make_quantizer(name, weights={"granularity": "group", "group_size": 3})
    with pytest.raises(ValueError, match="layer 1: group_size=3 does not divide the 8 inputs"):
        quantize(model, groups)
    assert type(model[0]) is nn.Linear


def test_full_leaves_every_object_of_the_model_untouched(make_quantizer: Make) -> None:
    model = Network()
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    expected = run(copy.deepcopy(model))
    conversion = quantize(model, make_quantizer("full"), ["*"], ["embed", "head"])
    assert conversion.body == sorted([*BLOCKS, "conv"])
    assert all(module is modules[name] for name, module in model.named_modules())
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert len(list(model.named_modules())) == len(modules)
    assert torch.equal(run(model), expected)


def test_full_norm_is_the_ordinary_layer_after_the_norm(make_quantizer: Make) -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    plain = copy.deepcopy(model)
    quantize(model, make_quantizer("full_norm"), ["*"], [])
    assert body_of(model) == ["0", "2"]
    assert quantized_layers(model) == {}
    x = torch.randn(5, 8)
    hidden = F.relu(plain[0](F.layer_norm(x, [8])))
    assert torch.equal(model(x), plain[2](F.layer_norm(hidden, [6])))


def test_attention_of_torch_is_refused_by_name(make_quantizer: Make) -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    quantizer = make_quantizer("ternary_mean")
    with pytest.raises(ValueError, match=r"^0\.self_attn\.out_proj: it is a NonDynamically"):
        quantize(model, quantizer, ["*"], [])
    with pytest.raises(ValueError, match=r"0\.self_attn\.in_proj_weight would stay"):
        quantize(model, quantizer, ["*"], ["*.out_proj"])
    assert quantize(model, quantizer, ["*"], ["*.self_attn"]).body == ["0.linear1", "0.linear2"]
