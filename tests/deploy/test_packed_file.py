"""The packed file: the same bits after a round trip, and the bytes it takes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from bitexp.deploy.frozen import FrozenLayer, freeze
from bitexp.deploy.packed_checks import Limited
from bitexp.deploy.packed_file import load_packed, read_packed, save_packed, sizes
from bitexp.kernels import KERNELS
from bitexp.models import MODELS
from bitexp.quant import QUANTIZERS
from tests.support.marks import others_slow
from tests.support.packed_files import (
    MODEL_ARGUMENTS,
    REFERENCE,
    describe,
    trained,
    write,
)  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file of a test lies."""
    return tmp_path / "packed.safetensors"


@pytest.mark.parametrize("model", others_slow(MODEL_ARGUMENTS, ["mlp"]))
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_loaded_model_gives_the_bits_of_the_trained_one(path: Path, quantizer: str, model: str) -> None:
    description = describe(model, quantizer)
    _, x, expected = write(path, description)
    kernels = [KERNELS.get(name) for name in KERNELS.names()]
    available = [kernel for kernel in kernels if not kernel.unavailable("cpu")]
    assert available
    for kernel in available:
        loaded, preprocessing = load_packed(path, kernel)
        assert not loaded.training
        assert torch.equal(loaded(x), expected)
        assert preprocessing == description.preprocessing
        frozen = [module for module in loaded.modules() if isinstance(module, FrozenLayer)]
        assert bool(frozen) == QUANTIZERS[quantizer].quantizes
        assert all(layer.kernel is kernel for layer in frozen)


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": {"granularity": "channel"}},
        {"weights": {"granularity": "group", "group_size": 8}},
        {"activations": {"qmax": 128}, "bias": "scaled"},
        {"activations": "none", "norm": "none"},
    ],
)
@pytest.mark.parametrize("layout", ["auto", "pack2", "pack4", "pack8"])
def test_every_way_to_quantize_survives_the_file(path: Path, layout: str, changes: dict[str, Any]) -> None:
    description = describe(**changes)
    description.model_arguments["hidden"] = [24, 16]
    _, x, expected = write(path, description, layout)
    loaded, _ = load_packed(path, REFERENCE)
    assert torch.equal(loaded(x), expected)
    layouts = {m.packing.name for m in loaded.modules() if isinstance(m, FrozenLayer)}
    assert layouts == {"pack5" if layout == "auto" else layout}


def test_sizes_count_the_bytes_of_the_body_and_of_all(path: Path) -> None:
    bias, head = (24 + 17) * 4, (17 * 5 + 5) * 4
    for layout, per_byte in (("pack5", 5), ("pack2", 4), ("pack8", 1)):
        write(path, describe(), layout)
        body = 24 * -(-64 // per_byte) + 17 * -(-24 // per_byte) + 2 * 4
        assert sizes(read_packed(path)) == {"body_bytes": body, "total_bytes": body + bias + head}
    for control in ("full", "full_norm"):
        write(path, describe(quantizer=control))
        body = (64 * 24 + 24 * 17) * 4
        assert sizes(read_packed(path)) == {"body_bytes": body, "total_bytes": body + bias + head}
    write(path, describe(weights={"granularity": "channel"}))
    assert sizes(read_packed(path))["body_bytes"] == 24 * 13 + 17 * 5 + (24 + 17) * 4


def test_a_file_holds_little_beside_its_tensors(path: Path) -> None:
    write(path, describe())
    assert 0 < path.stat().st_size - sizes(read_packed(path))["total_bytes"] < 4000


def test_a_model_is_always_written_in_the_same_bytes(path: Path) -> None:
    write(path, describe("cnn"))
    content = path.read_bytes()
    write(path, describe("cnn"))
    assert path.read_bytes() == content


def test_floats_are_stored_in_fp32(path: Path) -> None:
    description = describe("cnn")
    model, body = trained(description)
    model.bfloat16()
    freeze(model, "auto", REFERENCE)
    save_packed(path, model, description, body)
    with safe_open(path, "pt") as file:
        dtypes = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert dtypes == {torch.uint8, torch.float32, torch.int64}


class Tied(nn.Module):
    """A linear that stands in two places, and a head that shares its weights with another."""

    def __init__(self, *, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.again = nn.Sequential(self.first)
        self.head = nn.Linear(64, classes)
        self.twin = nn.Linear(64, classes)
        self.twin.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.first(x.flatten(1)))
        return self.head(x) + self.twin(x)


@pytest.mark.parametrize("quantizer", ["ternary_mean", "full"])
def test_what_is_shared_is_stored_once_and_shared_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, quantizer: str
) -> None:
    monkeypatch.setitem(MODELS._entries, "tied", Tied)
    description = describe("tied", quantizer)
    description.exclude[:] = ["head", "twin"]
    _, x, expected = write(path, description)
    loaded, _ = load_packed(path, REFERENCE)
    assert torch.equal(loaded(x), expected)
    assert loaded.first is loaded.again[0]
    assert loaded.head.weight is loaded.twin.weight
    body = 64 * 64 * 4 if quantizer == "full" else 64 * 13 + 4
    assert sizes(read_packed(path)) == {"body_bytes": body, "total_bytes": body + (64 + 64 * 5 + 5 + 5) * 4}


class Calculated(nn.Sequential):
    """Layers whose widths were calculated by tensors, as those of torchvision's RegNets are."""

    def __init__(self, *, shape: tuple[int, int, int], classes: int) -> None:
        widths = (torch.linspace(0, 1, 3) * torch.tensor(-32.0) + 64).int().tolist()
        linears = [nn.Linear(*pair) for pair in pairwise(widths)]
        super().__init__(nn.Flatten(), *linears, nn.Linear(widths[-1], classes))


def test_a_constructor_may_calculate_with_tensors(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS._entries, "calculated", Calculated)
    description = describe("calculated")
    description.exclude[:] = ["3"]
    _, x, expected = write(path, description)
    loaded, _ = load_packed(path, REFERENCE)
    assert torch.equal(loaded(x), expected)


@pytest.mark.parametrize("numbers", [False, True])
def test_only_short_tensors_are_made_to_calculate_with(numbers: bool) -> None:
    with torch.device("meta"), Limited(10, numbers):
        short, long, drawn = torch.arange(4096), torch.arange(4097), torch.rand(2)
    assert [short.is_meta, long.is_meta, drawn.is_meta] == [not numbers, True, True]
