"""Four layers with four quantizers in one model: trained, frozen, packed, read again, the same bits."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from bitexp.deploy.description import Description
from bitexp.deploy.frozen import FrozenLayer, freeze
from bitexp.deploy.packed_file import load_packed, read_packed, save_packed, sizes
from bitexp.kernels import KERNELS
from bitexp.quant import Quantizer
from bitexp.quant.layers import quantized_layers, set_backend
from tests.support.kernels import AVAILABLE, every_kernel
from tests.support.training import Train

RULES: list[dict[str, Any]] = [
    {"match": "layers.0", "weights": {"name": "int", "bits": 8}},
    {"match": "layers.1", "weights": "binary"},
    {"match": "layers.2", "activations": "int4"},
    {"match": "layers.3", "weights": {"name": "lsq", "bits": 2}},
]
QUANTIZER = Quantizer.of(
    {
        "name": "mixed",
        "weights": {"name": "ternary_mean"},
        "activations": "int8",
        "norm": "layer",
        "layers": RULES,
    }
)
EXPECTED = {  # weights, bits, activations, layout with low and stride, scales
    "layers.0": ("int", 8, "int8", {"name": "pack8", "low": -127, "stride": 1}, (24,)),
    "layers.1": ("binary", None, "int8", {"name": "pack1", "low": -1, "stride": 2}, ()),
    "layers.2": ("ternary_mean", None, "int4", {"name": "pack5", "low": -1, "stride": 1}, ()),
    "layers.3": ("lsq", 2, "int8", {"name": "pack2", "low": -2, "stride": 1}, (18,)),
}
DESCRIPTION = Description(
    model="mlp",
    model_arguments={
        "shape": [1, 8, 8],
        "classes": 5,
        "hidden": [24, 17, 20, 18],
        "activation": "relu",
        "dropout": 0.0,
    },
    quantizer=QUANTIZER.to_json(),
    include=["*"],
    exclude=["head"],
    preprocessing={},
)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Images and their classes."""
    draw = torch.Generator().manual_seed(1)
    return torch.randn(32, 1, 8, 8, generator=draw), torch.randint(5, (32,), generator=draw)


def steps(model: nn.Module, batch: tuple[Tensor, Tensor], count: int = 3) -> list[float]:
    """The losses of some steps of training."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def build() -> nn.Module:
    torch.manual_seed(0)
    return DESCRIPTION.build()


def test_each_layer_has_the_parts_of_its_last_rule() -> None:
    layers = quantized_layers(build())
    assert set(layers) == set(EXPECTED)
    for name, (weights, bits, activations, _, scales) in EXPECTED.items():
        spec, part = layers[name].spec, layers[name].parts.weights
        assert spec.weights is not None
        assert spec.activations is not None
        assert (spec.weights.name, spec.weights.options.get("bits")) == (weights, bits)
        assert spec.activations.part.name == activations
        assert layers[name].quantized().scale.shape == scales
        assert [p.shape for p in part.parameters()] == ([(18,)] if weights == "lsq" else [])


@every_kernel
def test_a_trained_model_gives_the_same_bits_packed_and_read_again(
    tmp_path: Path, kernel: str, batch: tuple[Tensor, Tensor]
) -> None:
    model = build()
    set_backend(model, KERNELS.get(kernel).backend)
    before = copy.deepcopy(model.state_dict())
    losses = steps(model, batch)
    assert losses[-1] < losses[0]
    assert not any(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
    x = torch.randn(9, 1, 8, 8)
    expected = model(x).detach()
    frozen = copy.deepcopy(model)
    assert set(freeze(frozen, "auto", KERNELS.get(kernel))) == set(EXPECTED)
    assert torch.equal(frozen(x), expected)

    path = tmp_path / "packed.safetensors"
    save_packed(path, frozen, DESCRIPTION, list(EXPECTED))
    for name in AVAILABLE:
        loaded, _ = load_packed(path, KERNELS.get(name))
        assert torch.equal(loaded(x), expected), name
        twins = {n: module for n, module in loaded.named_modules() if isinstance(module, FrozenLayer)}
        assert {n: twin.packing.to_json() for n, twin in twins.items()} == {
            n: layout for n, (_, _, _, layout, _) in EXPECTED.items()
        }

    header, tensors = read_packed(path)
    for name, (weights, bits, activations, layout, scales) in EXPECTED.items():
        shown = header["layers"][name]
        assert (shown["weights"]["name"], shown["weights"].get("bits")) == (weights, bits)
        assert (shown["activations"]["name"], shown["layout"]) == (activations, layout)
        assert tensors[f"{name}.scale"].shape == scales
    with safe_open(path, "pt") as file:
        described = json.loads(file.metadata()["bitexp"])["description"]["quantizer"]
    assert described == json.loads(json.dumps(QUANTIZER.to_json()))
    rows = 24 * 64 + 17 * 3 + 20 * 4 + 18 * 5
    assert sizes(read_packed(path))["body_bytes"] == rows + 4 * (24 + 1 + 1 + 18)


def test_outputs_in_training_have_the_same_bits_with_every_backend(batch: tuple[Tensor, Tensor]) -> None:
    """Without norms, which backends may round otherwise."""
    plain = replace(DESCRIPTION, quantizer={**QUANTIZER.to_json(), "norm": "none"})
    torch.manual_seed(0)
    model = plain.build()
    expected = model(batch[0])
    for kernel in AVAILABLE:
        set_backend(model, KERNELS.get(kernel).backend)
        assert torch.equal(model(batch[0]), expected)


def test_a_run_with_rules_packs_what_it_tests(train: Train) -> None:
    rules = (
        "{match: layers.0, weights: {name: int, bits: 8}}, {match: layers.1, weights: binary}, "
        "{match: layers.2, activations: int4}, {match: layers.3, weights: {name: lsq, bits: 2}}"
    )
    outcome = train("model.hidden=[16,16,16,16]", f"quantizer.layers=[{rules}]")
    metrics = outcome.result["metrics"]
    assert outcome.status == "finished"
    assert metrics["test/loss"] == metrics["test_packed/loss"]
    header, _ = read_packed(outcome.folder / "packed.safetensors")
    assert [layer["layout"]["name"] for _, layer in sorted(header["layers"].items())] == [
        "pack8", "pack1", "pack5", "pack2",
    ]  # fmt: skip
