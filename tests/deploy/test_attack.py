"""Flipped bits: what they do to weights, which ones an attacker finds, and which ones are noticed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bitexp.deploy.packed_file import read_packed, unpack
from bitexp.deploy.packing import LAYOUTS, layout_of
from bitexp.deploy.robustness.detection import found_in_file, not_loaded, with_flip
from bitexp.deploy.robustness.search import flipped, progressive_search, random_places, step_gains
from bitexp.deploy.robustness.stored import Gradients, Place, Stored, Unchecked, float_gains, memory_of
from bitexp.deploy.score import Samples
from bitexp.quant.levels import TERNARY
from tests.support.packed_files import REFERENCE, describe, write

CASES = {
    "binary": ("binary", {}, "pack1"),
    "ternary": ("ternary_mean", {}, "pack5"),
    "ternary in two bits": ("ternary_mean", {}, "pack2"),
    "3 bits": ("int", {"weights": {"name": "int", "bits": 3}}, "pack3"),
    "8 bits by channel": ("int", {"weights": {"name": "int", "bits": 8}}, "pack8"),
    "two planes": ("bit_planes", {}, "auto"),
}


@pytest.fixture(scope="module", params=CASES, ids=str)
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """A small network whose bytes are read whatever they are."""
    return made(tmp_path_factory.mktemp("attack") / "packed.safetensors", *CASES[request.param])[0]


def made(
    path: Path, quantizer: str, changes: dict[str, object], layout: str, hidden: Sequence[int] = (24, 17)
) -> tuple[Stored, nn.Module]:
    """A small network as it is stored, and as it was trained."""
    description = describe("mlp", quantizer, **changes)
    description.model_arguments["hidden"] = list(hidden)
    trained, _, _ = write(path, description, layout)
    file = read_packed(path)
    stored = Stored(unpack(path, file, REFERENCE)[0], file[0]["body"])
    stored.read_as("value")
    return stored, trained


def batch_of(stored: Stored, count: int = 32) -> Samples:
    """Inputs with what the network says about them."""
    inputs = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return Samples(inputs, stored.model(inputs).argmax(-1))


def test_a_gain_is_the_change_of_weights_times_their_gradient(stored: Stored) -> None:
    batch = batch_of(stored)
    _, gains = step_gains(stored, stored.codes, batch)
    layer = next(iter(stored.layers.values()))
    name = f"{next(iter(stored.layers))}.packed"
    before = layer.quantized().dequantized()
    layer.differentiated = before.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(stored.model(batch.inputs.requires_grad_()), batch.targets)
    (slope,) = torch.autograd.grad(loss, layer.differentiated)
    layer.differentiated = None
    for place in random_places(stored, [name], 24, 0):
        with flipped(stored, [place]):
            change = layer.quantized().dequantized() - before
        expected = float((change * slope).sum())
        assert float(gains[name][place.byte, place.bit]) == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("case", ["binary", "ternary in two bits", "ternary"])
def test_the_first_flip_is_the_best_or_near_it_by_brute_force(case: str, tmp_path: Path) -> None:
    stored, _ = made(tmp_path / "packed.safetensors", *CASES[case], hidden=[8, 12])
    batch = batch_of(stored)

    def loss() -> float:
        return batch.score(stored.model).loss

    clean, every = loss(), []
    for number in range(stored.bits(stored.codes)):
        place = stored.place(stored.codes, number)
        with flipped(stored, [place]):
            every.append((loss(), place))
    every.sort(key=lambda item: -item[0])
    found = progressive_search(
        stored, stored.codes, batch, lambda: batch.score(stored.model), lambda score: False, 1
    )
    assert found.places[0] in [place for _, place in every[: len(every) // 50]]
    assert loss() - clean >= (every[0][0] - clean) / 2
    assert loss() == found.scores[0].loss  # it stays flipped


def test_gradients_are_those_of_the_trained_network(tmp_path: Path) -> None:
    stored, trained = made(tmp_path / "packed.safetensors", "ternary_mean", {}, "auto")
    batch = batch_of(stored)
    torch.nn.functional.cross_entropy(trained(batch.inputs), batch.targets).backward()
    with Gradients(stored) as gradients:
        outputs = stored.model(batch.inputs.requires_grad_())
        found = gradients.of(torch.nn.functional.cross_entropy(outputs, batch.targets))
    for name, layer in stored.layers.items():
        expected = trained.get_submodule(name).weight.grad
        torch.testing.assert_close(found[f"{name}.packed"] / layer.scale, expected)


def test_flips_are_restored_to_the_bit(stored: Stored) -> None:
    before = {name: memory_of(tensor).clone() for name, tensor in stored.tensors.items()}
    batch = batch_of(stored)
    clean = batch.score(stored.model)
    places = random_places(stored, stored.names, 50, 3)
    assert len(set(places)) == 50
    with flipped(stored, places):
        changed = sum(int((memory_of(t) ^ before[n]).count_nonzero()) for n, t in stored.tensors.items())
        assert 0 < changed <= 50
    assert all(torch.equal(memory_of(tensor), before[name]) for name, tensor in stored.tensors.items())
    assert batch.score(stored.model) == clean


@pytest.mark.parametrize(
    ("layout", "byte", "value", "clamped"),
    [
        ("pack2", 0b11_10_01_00, [-1, 0, 1, 2], [-1, 0, 1, 1]),
        ("pack5", 255, [-1, 0, 0, -1, 2], [-1, 0, 0, -1, 1]),
    ],
)
def test_bytes_that_no_codes_make_are_refused_or_read(
    layout: str, byte: int, value: list[int], clamped: list[int]
) -> None:
    checked = layout_of(layout, TERNARY)
    packed = torch.tensor([[byte]], dtype=torch.uint8)
    with pytest.raises(ValueError, match="never writes"):
        checked.unpack(packed, LAYOUTS[layout].digits)
    assert Unchecked.of(checked, "value").unpack(packed, len(value)).tolist() == [value]
    assert Unchecked.of(checked, "clamp").unpack(packed, len(value)).tolist() == [clamped]


def test_another_layout_of_the_same_codes_computes_the_same(tmp_path: Path) -> None:
    stored, _ = made(tmp_path / "packed.safetensors", "ternary_mean", {}, "pack5")
    batch = batch_of(stored)
    before = batch.score(stored.model)
    assert stored.gaps
    stored.relaid("pack8")
    assert stored.bits(stored.codes) == sum(
        8 * layer.quantized().codes.numel() for layer in stored.layers.values()
    )
    assert batch.score(stored.model) == before
    with pytest.raises(ValueError, match="pack1"):
        stored.relaid("pack1")


def test_the_checksum_finds_every_flip_and_the_layout_those_that_it_never_writes(tmp_path: Path) -> None:
    path = tmp_path / "packed.safetensors"
    write(path, describe("mlp", "ternary_mean"), "pack2")
    assert found_in_file(path, 40) == 1.0
    header, tensors = read_packed(path)
    name = "layers.0.packed"
    packed = tensors[name]
    digits = layout_of("pack2", TERNARY).digits_of(packed).flatten()
    for number in range(0, 24):
        digit, bit = int(digits[number // 2]), number % 2
        illegal = digit ^ (1 << bit) == 3
        assert not_loaded(header, {**tensors, name: with_flip(packed, number)}) == illegal


def test_a_float_flip_is_what_the_bits_say() -> None:
    weights, slope = torch.tensor([1.0, -0.5]), torch.tensor([2.0, 0.0])
    gains = float_gains(weights, slope).reshape(2, 32)
    assert gains[0, 31] == -4.0  # the sign
    assert gains[0, 23] == (0.5 - 1.0) * 2.0  # the lowest bit of the exponent
    assert gains[0, 30] == torch.inf  # 1.0 becomes infinite
    assert not gains[1].any()  # nothing depends on it


def test_places_count_through_tensors(stored: Stored) -> None:
    first, second = stored.names[:2]
    size = 8 * stored.tensors[first].nbytes
    assert stored.place([first, second], 0) == Place(first, 0, 0)
    assert stored.place([first, second], size + 9) == Place(second, 1, 1)


def test_samples_are_scored_whole(stored: Stored) -> None:
    batch = batch_of(stored, 300)  # more than at once
    score = batch.score(stored.model)
    logits: Tensor = stored.model(batch.inputs).detach()
    assert score.accuracy == 1.0
    assert score.loss == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, batch.targets)), rel=1e-5
    )
