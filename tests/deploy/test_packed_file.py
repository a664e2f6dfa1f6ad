"""The packed file: the same bits after a round trip, and clean errors for anything that is none."""

from __future__ import annotations

import contextlib
import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bitexp.common.errors import UserError
from bitexp.deploy.frozen import FrozenLayer, freeze
from bitexp.deploy.packed_file import Description, checksum, load_packed, save_packed, sizes
from bitexp.kernels import KERNELS
from bitexp.models import MODELS
from bitexp.quant import QUANTIZERS
from bitexp.quant.convert import quantize

REFERENCE = KERNELS.get("reference")
SHAPE = (1, 8, 8)
MODEL_ARGUMENTS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": [24, 17], "activation": "relu", "dropout": 0.1},
    "cnn": {"widths": [4, 6], "pool": [2, 2], "kernel": 3, "dropout": 0.0},
    "vit": {
        "patch": 4,
        "dim": 8,
        "depth": 1,
        "heads": 2,
        "mlp_ratio": 2.0,
        "dropout": 0.0,
        "pool": "cls",
    },
}
KEPT = {"mlp": ["head"], "cnn": ["head"], "vit": ["patch_embed", "pos_embed", "head"]}
QUANTIZER_ARGUMENTS = {
    "norm": "layer",
    "activations": "int8",
    "act_qmax": 127,
    "granularity": "tensor",
    "group_size": None,
    "bias": "plain",
}
CONTROLS: dict[str, dict[str, Any]] = {"full": {}, "full_norm": {"norm": "layer"}}


def describe(model: str = "mlp", quantizer: str = "ternary_mean", **changes: Any) -> Description:
    """A small model on 8 x 8 images; `changes` are those of the quantizer's arguments."""
    return Description(
        model=model,
        model_arguments={"shape": SHAPE, "classes": 5, **MODEL_ARGUMENTS.get(model, {})},
        quantizer=quantizer,
        quantizer_arguments=CONTROLS.get(quantizer, {**QUANTIZER_ARGUMENTS, **changes}),
        include=["*"],
        exclude=KEPT.get(model, []),
        preprocessing={"mean": [0.5], "std": [0.25]},
    )


def trained(description: Description) -> tuple[nn.Module, list[str]]:
    """A model whose every parameter and buffer has moved, in eval mode, and its body."""
    torch.manual_seed(0)
    model = MODELS.get(description.model)(**description.model_arguments)
    quantizer = QUANTIZERS.get(description.quantizer)(**description.quantizer_arguments)
    body = quantize(model, quantizer, description.include, description.exclude).body
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model(torch.randn(16, *SHAPE))
    return model.eval(), body


def write(path: Path, description: Description, layout: str = "auto") -> tuple[nn.Module, Tensor, Tensor]:
    """Freezes and saves a model; returns the trained one, an input, and what it answers."""
    model, body = trained(description)
    x = torch.randn(9, *SHAPE)
    expected = model(x).detach()
    frozen = copy.deepcopy(model)
    freeze(frozen, layout, REFERENCE)
    save_packed(path, frozen, description, body)
    return model, x, expected


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file of a test lies."""
    return tmp_path / "packed.safetensors"


@pytest.mark.parametrize("model", MODEL_ARGUMENTS)
@pytest.mark.parametrize("quantizer", QUANTIZERS.names())
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
        assert bool(frozen) == QUANTIZERS.get(quantizer).quantizes_weights
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
    layouts = {m.spec.layout for m in loaded.modules() if isinstance(m, FrozenLayer)}
    assert layouts == {"pack5" if layout == "auto" else layout}


def test_sizes_count_the_bytes_of_the_body_and_of_all(path: Path) -> None:
    bias, head = (24 + 17) * 4, (17 * 5 + 5) * 4
    for layout, per_byte in (("pack5", 5), ("pack2", 4), ("pack8", 1)):
        write(path, describe(), layout)
        body = 24 * -(-64 // per_byte) + 17 * -(-24 // per_byte) + 2 * 4
        assert sizes(path) == {"body_bytes": body, "total_bytes": body + bias + head}
    for control in CONTROLS:
        write(path, describe(quantizer=control))
        body = (64 * 24 + 24 * 17) * 4
        assert sizes(path) == {"body_bytes": body, "total_bytes": body + bias + head}
    write(path, describe(weights={"granularity": "channel"}))
    assert sizes(path)["body_bytes"] == 24 * 13 + 17 * 5 + (24 + 17) * 4


def test_a_file_holds_little_beside_its_tensors(path: Path) -> None:
    write(path, describe())
    assert 0 < path.stat().st_size - sizes(path)["total_bytes"] < 4000


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
    assert sizes(path) == {"body_bytes": body, "total_bytes": body + (64 + 64 * 5 + 5 + 5) * 4}


def assert_refused(path: Path, match: str = ".") -> None:
    """Loading fails with words for the user, the file's name among them."""
    with pytest.raises(UserError, match=match) as refused:
        load_packed(path, REFERENCE)
    assert str(path) in str(refused.value)


def test_a_missing_file_is_named(path: Path) -> None:
    assert_refused(path, "there is no packed file")
    with pytest.raises(UserError, match="there is no packed file"):
        sizes(path)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"PK\3\4 a zip file", b"{}", b"\xff" * 64])
def test_a_foreign_file_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert_refused(path, "is damaged or no safetensors file")


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"format": "pt"},
        {"bitexp": "{"},
        {"bitexp": "[]"},
        {"bitexp": '{"format": 1}'},
        {"bitexp": '{"format": 2, "body": [], "layers": {}, "description": {}}'},
        {"bitexp": "[" * 100_000},
    ],
)
def test_safetensors_of_others_are_refused(path: Path, metadata: dict[str, str] | None) -> None:
    path.write_bytes(save({"weight": torch.ones(2)}, metadata))
    assert_refused(path)
    with pytest.raises(UserError):
        sizes(path)


def test_a_folder_is_refused(path: Path) -> None:
    path.mkdir()
    assert_refused(path)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Tensor, Tensor]:
    """The bytes of a good file, an input, and what its model answers."""
    path = tmp_path_factory.mktemp("good") / "packed.safetensors"
    _, x, expected = write(path, describe())
    return path.read_bytes(), x, expected


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where spoiled files lie."""
    return tmp_path_factory.mktemp("spoiled") / "packed.safetensors"


@given(data=st.data())
def test_a_truncated_file_is_refused(
    original: tuple[bytes, Tensor, Tensor], spoiled: Path, data: st.DataObject
) -> None:
    content = original[0]
    spoiled.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    assert_refused(spoiled, "damaged")


@given(data=st.data())
def test_a_flipped_bit_is_noticed(
    original: tuple[bytes, Tensor, Tensor], spoiled: Path, data: st.DataObject
) -> None:
    content = bytearray(original[0])
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    spoiled.write_bytes(content)
    assert_refused(spoiled)


def test_every_byte_of_the_header_counts(original: tuple[bytes, Tensor, Tensor], spoiled: Path) -> None:
    content = original[0]
    for at in range(8 + int.from_bytes(content[:8], "little")):
        spoiled.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(UserError):
            sizes(spoiled)


def rewrite(
    path: Path,
    content: bytes,
    change: Callable[[dict[str, Any], dict[str, Tensor]], None],
) -> None:
    """A file as somebody else might make it: changed, and with the checksum that fits."""
    path.write_bytes(content)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["bitexp"])
        del header["crc32"]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(header, tensors)
    header["crc32"] = checksum(header, tensors)
    path.write_bytes(save(tensors, {"bitexp": json.dumps(header)}))


def test_an_unchanged_rewrite_loads(original: tuple[bytes, Tensor, Tensor], spoiled: Path) -> None:
    content, x, expected = original
    rewrite(spoiled, content, lambda header, tensors: None)
    loaded, _ = load_packed(spoiled, REFERENCE)
    assert torch.equal(loaded(x), expected)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("model", "mpl", r"unknown model 'mpl'\. Did you mean 'mlp'\?"),
        ("quantizer", "ternary", "unknown quantizer 'ternary'.*ternary_mean"),
        ("include", ["layer"], r"no layer of the model is called 'layer'.*'layers'"),
        ("model_arguments", {"shape": [1, 8, 8]}, "missing 4 required keyword-only arguments"),
        ("quantizer_arguments", {"norm": "layer"}, "missing"),
        ("exclude", [], "its packed layers are"),
        ("include", ["layers.1"], r"layers\.0\.weight would stay"),
    ],
)
def test_a_description_that_cannot_be_built_says_why(
    original: tuple[bytes, Tensor, Tensor], spoiled: Path, part: str, value: Any, message: str
) -> None:
    rewrite(spoiled, original[0], lambda header, _: header["description"].update({part: value}))
    assert_refused(spoiled, message)


def rename(old: str, new: str) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    """Gives a packed layer another name, in the header and in its tensors."""

    def change(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        header["layers"][new] = header["layers"].pop(old)
        for part in ("packed", "scale", "bias"):
            tensors[f"{new}.{part}"] = tensors.pop(f"{old}.{part}")

    return change


@pytest.mark.parametrize(
    "name",
    [
        "__class__",
        "forward",
        "layers",
        "layers.0.weight",
        "layers.__class__.forward",
        "__init__.__globals__",
        "../../escaped",
        "/absolute",
        "head",
        "",
        ".",
    ],
)
def test_names_of_layers_reach_nothing_but_the_layers_of_the_model(
    original: tuple[bytes, Tensor, Tensor], spoiled: Path, name: str
) -> None:
    forward = MODELS.get("mlp").forward
    rewrite(spoiled, original[0], rename("layers.0", name))
    assert_refused(spoiled, "its packed layers are")
    assert MODELS.get("mlp").forward is forward
    assert list(spoiled.parent.iterdir()) == [spoiled]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layout", "pack9"),
        ("layout", "pack1"),
        ("layout", ["pack5"]),
        ("norm", "none"),
        ("act_qmax", 128),
        ("shape", [24, 65]),
        ("shape", [24]),
        ("conv", [[1, 1], [0, 0], [1, 1], 1]),
        ("conv", 3),
        ("scaled_bias", "yes"),
        ("kernel", "os.system"),
    ],
)
def test_layers_that_are_described_as_others_than_the_model_has_are_refused(
    original: tuple[bytes, Tensor, Tensor], spoiled: Path, field: str, value: Any
) -> None:
    rewrite(spoiled, original[0], lambda header, _: header["layers"]["layers.0"].update({field: value}))
    assert_refused(spoiled)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("layers.0.packed", torch.zeros(24, 12, dtype=torch.uint8), "size mismatch"),
        ("layers.0.packed", torch.full((24, 13), 255, dtype=torch.uint8), "damaged"),
        ("layers.0.scale", torch.ones(3), "size mismatch"),
        ("layers.1.bias", torch.ones(16), "size mismatch"),
        ("extra", torch.ones(1), "no place for extra"),
        ("layers.0.weight", torch.ones(24, 64), "no place for layers.0.weight"),
    ],
)
def test_tensors_that_do_not_fit_the_model_are_refused(
    original: tuple[bytes, Tensor, Tensor], spoiled: Path, name: str, tensor: Tensor, message: str
) -> None:
    rewrite(spoiled, original[0], lambda _, tensors: tensors.update({name: tensor}))
    assert_refused(spoiled, message)


@pytest.mark.parametrize("name", ["layers.0.packed", "layers.1.scale", "layers.0.bias", "head.weight"])
def test_a_file_without_one_of_its_tensors_is_refused(
    original: tuple[bytes, Tensor, Tensor], spoiled: Path, name: str
) -> None:
    rewrite(spoiled, original[0], lambda _, tensors: tensors.__delitem__(name))
    assert_refused(spoiled, name)


@pytest.mark.parametrize("part", ["model", "quantizer"])
@pytest.mark.parametrize("name", ["canary", "canary.touch", "canary:touch", "__import__('canary')"])
def test_names_are_looked_up_and_never_imported_or_called(
    original: tuple[bytes, Tensor, Tensor],
    spoiled: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    part: str,
    name: str,
) -> None:
    (tmp_path / "canary.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    target = {"_target_": name, "norm": name}
    rewrite(
        spoiled,
        original[0],
        lambda header, _: header["description"].update({part: name, f"{part}_arguments": target}),
    )
    assert_refused(spoiled, f"unknown {part}")
    assert "canary" not in sys.modules


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-300, 300) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(data=st.data())
def test_nothing_in_a_header_raises_anything_but_words_for_the_user(
    original: tuple[bytes, Tensor, Tensor], spoiled: Path, data: st.DataObject
) -> None:
    def change(header: dict[str, Any], _: dict[str, Tensor]) -> None:
        places = [header, header["description"], header["description"]["model_arguments"]]
        places += [header["description"]["quantizer_arguments"], *header["layers"].values()]
        place = data.draw(st.sampled_from(places))
        place[data.draw(st.sampled_from(sorted(place)))] = data.draw(JSON)

    rewrite(spoiled, original[0], change)
    with contextlib.suppress(UserError):
        load_packed(spoiled, REFERENCE)
    with contextlib.suppress(UserError):
        sizes(spoiled)
