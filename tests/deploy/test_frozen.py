"""Frozen models and layers: layouts, memory, state, precisions, descriptions."""

from __future__ import annotations

import copy
import json
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import nn

from bitexp.deploy.frozen import FrozenLayer, Packing, freeze, freeze_layer
from bitexp.deploy.packing import LAYOUTS
from bitexp.kernels import KERNELS
from bitexp.quant import QUANTIZERS, Levels, Part, Quantizer
from bitexp.quant.layers import BitConv2d, BitLinear, set_lambda
from bitexp.quant.spec import ActivationSpec, LayerSpec
from tests.support.kernels import every_kernel
from tests.support.marks import others_slow
from tests.support.quantizers import MakeQuantizer as Make

PRESETS = [name for name, quantizer in QUANTIZERS.items() if quantizer.quantizes]
REFERENCE = KERNELS.get("reference")


def network(quantizer: Quantizer) -> nn.Module:
    """A convolution and a linear that is used twice."""
    linear = BitLinear(nn.Linear(8, 8), quantizer)
    conv = BitConv2d(nn.Conv2d(1, 8, 3), quantizer)
    return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear, nn.GELU(), linear)


@every_kernel
def test_a_frozen_model_gives_the_bits_of_the_trained_one(make_quantizer: Make, kernel: str) -> None:
    torch.manual_seed(0)
    model = network(make_quantizer("ternary_mean")).eval()
    x = torch.randn(4, 1, 6, 6)
    expected = model(x)
    frozen = freeze(model, "auto", KERNELS.get(kernel))
    assert set(frozen) == {"0", "3"}
    assert model[0] is frozen["0"]
    assert model[3] is frozen["3"]
    assert model[5] is model[3]
    assert not list(model.parameters())
    assert torch.equal(model(x), expected)


def test_a_model_that_is_a_single_layer_is_refused(make_quantizer: Make) -> None:
    layer = BitLinear(nn.Linear(8, 4), make_quantizer("ternary_mean"))
    with pytest.raises(ValueError, match="wrap it in a module"):
        freeze(layer, "auto", REFERENCE)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("layout", others_slow(["auto", *LAYOUTS], ["auto", "pack2", "pack8"]))
def test_every_layout_that_holds_the_codes_gives_the_same_bits(
    make_quantizer: Make, name: str, layout: str
) -> None:
    torch.manual_seed(0)
    layer = BitLinear(nn.Linear(37, 5), make_quantizer(name)).eval()
    x = torch.randn(3, 37)
    if layout != "auto" and LAYOUTS[layout].base < layer.spec.levels.count:
        with pytest.raises(ValueError, match=f"do not fit the layout {layout}"):
            freeze_layer(layer, layout, REFERENCE)
        return
    frozen = freeze_layer(layer, layout, REFERENCE)
    assert frozen.packed.shape == (5, frozen.packing.layout.row_bytes(37))
    assert torch.equal(frozen(x), layer(x))


def test_a_frozen_layer_keeps_its_own_memory(make_quantizer: Make) -> None:
    layer = BitLinear(nn.Linear(8, 4), make_quantizer("ternary_mean"))
    frozen = freeze_layer(layer, "auto", REFERENCE)
    x = torch.randn(3, 8)
    before = frozen(x)
    with torch.no_grad():
        layer.weight.neg_()
        assert layer.bias is not None
        layer.bias.add_(1)
    assert torch.equal(frozen(x), before)
    assert set(frozen.state_dict()) == {"packed", "scale", "bias"}
    assert not list(frozen.parameters())


@every_kernel
def test_a_frozen_layer_computes_with_the_state_that_was_loaded(make_quantizer: Make, kernel: str) -> None:
    layers = [BitLinear(nn.Linear(8, 4), make_quantizer("ternary_mean")) for _ in range(2)]
    one, other = (freeze_layer(layer, "pack5", KERNELS.get(kernel)) for layer in layers)
    x = torch.randn(3, 8)
    assert not torch.equal(one(x), other(x))
    one.load_state_dict(other.state_dict())
    assert torch.equal(one(x), other(x))


@every_kernel
def test_a_frozen_layer_survives_deepcopy_and_a_move(make_quantizer: Make, kernel: str) -> None:
    layer = BitLinear(nn.Linear(8, 4), make_quantizer("ternary_mean"))
    frozen = freeze_layer(layer, "auto", KERNELS.get(kernel))
    x = torch.randn(3, 8)
    assert torch.equal(copy.deepcopy(frozen)(x), frozen(x))
    assert torch.equal(copy.deepcopy(frozen).cpu()(x), frozen(x))
    frozen.use(REFERENCE)
    assert torch.equal(frozen(x), layer(x))


@every_kernel
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_in_bf16_a_frozen_layer_rounds_only_the_result(make_quantizer: Make, kernel: str, norm: str) -> None:
    torch.manual_seed(0)
    layer = BitLinear(nn.Linear(40, 24), make_quantizer("ternary_mean", norm=norm))
    frozen = freeze_layer(layer, "auto", KERNELS.get(kernel))
    x = torch.randn(3, 40)
    with torch.autocast("cpu", torch.bfloat16):
        y = frozen(x)
        assert torch.equal(y, layer(x))
    assert torch.equal(y, layer(x).bfloat16())
    assert torch.equal(frozen(x.bfloat16()), layer(x.bfloat16()))
    assert frozen(x.bfloat16()).dtype == torch.bfloat16


SPEC = LayerSpec((8, 4, 3, 3), ((1, 2), (0, 1), (1, 1), 4), "rms")


@pytest.mark.parametrize(
    "other",
    [
        {"shape": (8, 4, 3, 1)},
        {"conv": None},
        {"conv": ((1, 2), (0, 1), (1, 1), 2)},
        {"norm": "layer"},
        {"transform": Part("hadamard", {"applies_to": "both", "block": None})},
        {"sparsifier": Part("top_k", {"keep": 0.5, "block": None})},
        {"activations": None},
        {"activations": ActivationSpec(Part("int8", {"qmax": 128}), Levels(-128, 127), absmax=128)},
        {"activations": ActivationSpec(Part("int4"), Levels(-8, 7))},
        {"weights": Part("ternary_median")},
        {"levels": Levels(-1, 1, 2)},
        {"shift": True},
        {"bias": "scaled"},
        {"output_norm": "layer"},
    ],
    ids=str,
)
def test_a_description_survives_json_and_tells_a_layer_from_every_other(other: dict[str, Any]) -> None:
    def described(spec: LayerSpec) -> Any:
        return json.loads(json.dumps(spec.to_json()))

    assert described(replace(SPEC, **other)) != described(SPEC)
    assert described(replace(SPEC)) == described(SPEC)
    everything = replace(SPEC, output_norm="layer")  # which is said only where there is one
    assert set(described(everything)) == {field.name for field in fields(SPEC) if field.init}


def test_a_layer_whose_bytes_no_codes_make_is_refused() -> None:
    spec = LayerSpec((2, 5))
    packed = torch.full((2, 1), 243, dtype=torch.uint8)
    with pytest.raises(ValueError, match="damaged"):
        FrozenLayer(spec, Packing.of("pack5", spec), packed, torch.ones(()), None, None, REFERENCE)


@every_kernel
@pytest.mark.parametrize("preset", ["ternary_mean", "lsq"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_what_a_frozen_layer_has_learned_is_not_rounded_by_another_precision(
    make_quantizer: Make, kernel: str, preset: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    frozen = freeze_layer(BitLinear(nn.Linear(40, 24), make_quantizer(preset)), "auto", KERNELS.get(kernel))
    x, state = torch.randn(3, 40), {k: v.clone() for k, v in frozen.state_dict().items()}
    expected = frozen(x)
    model = nn.Sequential(frozen, nn.Linear(24, 2)).to(dtype)
    assert model[1].weight.dtype == dtype
    assert all(v.dtype == state[k].dtype and torch.equal(v, state[k]) for k, v in frozen.state_dict().items())
    assert torch.equal(frozen(x), expected)
    assert model(x.to(dtype)).dtype == dtype


def test_a_layer_that_is_quantized_in_part_is_not_frozen(make_quantizer: Make) -> None:
    model = nn.Sequential(BitLinear(nn.Linear(8, 4), make_quantizer("ternary_mean")))
    set_lambda(model, 0.25)
    with pytest.raises(ValueError, match=r"lambda is 0\.25.*set_lambda\(model, 1\.0\) first"):
        freeze(model)
    assert isinstance(model[0], BitLinear)
    set_lambda(model, 1.0)
    assert set(freeze(model)) == {"0"}
