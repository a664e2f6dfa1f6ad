"""Packed files with a right checksum and wrong values: refused in words, before they take any memory."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bitexp.common.errors import UserError
from bitexp.deploy.packed_checks import check_integers
from bitexp.deploy.packed_file import load_packed
from bitexp.models import MODELS
from tests.support.packed_files import REFERENCE, SHAPE, assert_refused, describe, rewrite, write

Good = dict[str, bytes]
NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Good:
    """Good files of several kinds."""
    path = tmp_path_factory.mktemp("good") / "packed.safetensors"
    contents = {}
    for name, description, layout in (
        ("mlp", describe(), "auto"),
        ("pack2", describe(), "pack2"),
        ("cnn", describe("cnn", "binary"), "auto"),
        ("vit", describe("vit", "lsq"), "auto"),
        ("int4", describe("mlp", "ternary_int4"), "auto"),
        ("words", describe("mlp", "sherry"), "auto"),
        ("planes", describe("mlp", "ttq"), "auto"),
        ("learned", describe("mlp", "lsq_wa"), "auto"),
        ("learned cnn", describe("cnn", "lsq_plus"), "auto"),
    ):
        write(path, description, layout)
        contents[name] = path.read_bytes()
    return contents


def put(name: str, value: float, place: int = 0) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    """Puts a value into a tensor."""

    def change(_: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[place] = value

    return change


@pytest.mark.parametrize(
    ("kind", "name", "value", "message"),
    [
        ("mlp", "layers.0.scale", NAN, r"layers\.0\.scale holds values that are no finite numbers"),
        ("mlp", "layers.0.scale", INF, "no finite numbers"),
        ("mlp", "layers.0.scale", 0.0, r"layers\.0\.scale holds values that are no scales"),
        ("mlp", "layers.0.scale", -0.5, "no scales"),
        ("vit", "blocks.0.mlp.fc1.scale", 3e38, "no scales: they must be above 0 and finite"),
        ("mlp", "layers.1.bias", NAN, r"layers\.1\.bias holds"),
        ("mlp", "head.weight", -INF, r"head\.weight holds"),
        ("mlp", "layers.0.packed", 243, "bytes that this layout never writes"),
        ("pack2", "layers.0.packed", 0b00_11_00_00, "bytes that this layout never writes"),
        ("planes", "layers.0.packed", 243, "bytes that this layout never writes"),
        (
            "learned",
            "layers.0.activations.step_size",
            3e38,
            r"layers\.0\.activations holds values of which no",
        ),
        ("learned", "layers.0.activations.step_size", NAN, "no finite numbers"),
    ],
)
def test_values_that_no_training_leaves_are_refused(
    good: Good, spoiled: Path, kind: str, name: str, value: float, message: str
) -> None:
    rewrite(spoiled, good[kind], put(name, value))
    assert_refused(spoiled, message)


def test_a_variance_below_zero_is_refused(good: Good, spoiled: Path) -> None:
    def change(_: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        name = next(name for name in tensors if name.endswith("running_var"))
        tensors[name][0] = -1.0

    rewrite(spoiled, good["cnn"], change)
    assert_refused(spoiled, "a variance below 0")


def test_what_convolutions_have_learned_of_activations_is_checked(good: Good, spoiled: Path) -> None:
    def change(_: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        name = next(name for name in tensors if name.endswith("activations.step_size"))
        tensors[name].fill_(3e38)

    rewrite(spoiled, good["learned cnn"], change)
    assert_refused(spoiled, r"activations holds values of which no scale comes")


def test_batches_below_zero_are_refused(good: Good, spoiled: Path) -> None:
    def change(_: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        name = next(name for name in tensors if name.endswith("num_batches_tracked"))
        tensors[name].fill_(-1)

    rewrite(spoiled, good["cnn"], change)
    assert_refused(spoiled, "num_batches_tracked holds integers below 0")


@pytest.mark.parametrize("value", [-1, 4])
def test_positions_outside_of_a_table_are_refused(value: int) -> None:
    made = {"index": torch.arange(4).reshape(2, 2), "flag": torch.tensor(False)}
    check_integers(made, {name: name for name in made}, {**made, "index": made["index"].flip(0)})
    with pytest.raises(ValueError, match=r"index holds integers outside of 0 \.\. 3"):
        check_integers(made, {name: name for name in made}, {**made, "index": torch.full((2, 2), value)})


@pytest.mark.parametrize(
    ("kind", "name", "value", "place"),
    [
        ("mlp", "layers.0.packed", 3**4, 12),  # of 64 codes 4 are in byte 12
        ("words", "layers.1.packed", 0b1000_0000, 4),  # of 24 codes 6 words are in 5 bytes
        ("planes", "layers.0.packed", 3**4, 12),  # 64 pairs of codes
    ],
)
def test_codes_beyond_the_end_of_a_row_are_refused(
    good: Good, spoiled: Path, kind: str, name: str, value: int, place: int
) -> None:
    rewrite(spoiled, good[kind], put(name, value, place))
    assert_refused(spoiled, "beyond the end of a row")


def test_scales_of_other_planes_are_refused(good: Good, spoiled: Path) -> None:
    rewrite(spoiled, good["planes"], lambda _, tensors: tensors.update({"layers.0.scale": torch.ones(3)}))
    assert_refused(spoiled, "size mismatch|layers.0.scale")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *itertools.product(
            ["layers.0.packed", "layers.0.scale"], [torch.float64, torch.float16, torch.int32]
        ),
        *itertools.product(["head.weight"], [torch.float64, torch.int32]),  # imported ones are halves
    ],
)
def test_tensors_of_another_dtype_are_refused(
    good: Good, spoiled: Path, name: str, dtype: torch.dtype
) -> None:
    rewrite(spoiled, good["mlp"], lambda _, tensors: tensors.update({name: tensors[name].to(dtype)}))
    assert_refused(spoiled, f"{name} is {dtype}")


@pytest.mark.parametrize(
    "body", [["layers.0"], ["layers.0", "layers.1", "layers.1"], ["layers.0", "layers.1", 3], ["a"]]
)
def test_a_body_of_other_layers_is_refused(good: Good, spoiled: Path, body: list[Any]) -> None:
    rewrite(spoiled, good["mlp"], lambda header, _: header.update(body=body))
    assert_refused(spoiled, "its body is")


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', '{"a": 1, "a": 2}'])
def test_a_header_of_odd_numbers_or_one_that_says_a_thing_twice_is_refused(spoiled: Path, text: str) -> None:
    header = json.dumps({"__metadata__": {"bitexp": text}}).encode()
    spoiled.write_bytes(struct.pack("<Q", len(header)) + header)
    assert_refused(spoiled, "its header has")


SIZES: dict[str, tuple[dict[str, Any], dict[str, list[int]]]] = {
    "mlp": ({"hidden": [24, 10**7]}, {"layers.1": [10**7, 24]}),
    "cnn": ({"widths": [4, 10**6]}, {"blocks.0.conv": [10**6, 4, 3, 3]}),
    "vit": ({"depth": 10**9}, {}),
}
"""Arguments of models, and the shapes of layers that fit them."""


@pytest.mark.parametrize("kind", SIZES)
def test_a_small_file_that_describes_a_large_model_takes_no_memory(
    good: Good, spoiled: Path, kind: str
) -> None:
    """Of what torch allocates, the meta device allocates nothing; a depth ends where the file does."""

    def change(header: dict[str, Any], _: dict[str, Tensor]) -> None:
        arguments, shapes = SIZES[kind]
        header["description"]["model_arguments"].update(arguments)
        for name, shape in shapes.items():
            header["layers"][name]["shape"] = shape

    rewrite(spoiled, good[kind], change)
    built = []

    class Seen(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.device.type != "meta":
                built.append(result.nbytes)
            return result

    tracemalloc.start()
    try:
        with Seen():
            assert_refused(spoiled, "size mismatch|far more tensors")
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert sum(built) < 1e6


def test_vocabularies_and_widths_of_all_models_are_held_against_the_file(tmp_path: Path) -> None:
    """A model that cannot be built on the meta device could not be loaded: each one can."""
    arguments: dict[str, dict[str, Any]] = {
        "torchvision": {"shape": [3, 32, 32], "classes": 5, "arch": "resnet18", "stem": "small"},
        "decoder": {
            "vocabulary": 11, "context": 8, "dim": 8, "depth": 1, "heads": 2, "kv_heads": 1, "mlp_ratio": 2.0,
            "activation": "relu2", "sub_norm": True, "tied": True, "rope_base": 1e4, "norm_eps": 1e-5,
            "init_std": 0.02, "dropout": 0.0,
        },
    }  # fmt: skip
    for name in MODELS.names():
        if name in arguments or name in ("mlp", "cnn", "vit"):
            given = arguments.get(name) or describe(name).model_arguments
            with torch.device("meta"):
                model = MODELS.get(name)(**given)
            assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


def test_words_of_a_file_are_not_taken_for_a_lack_of_memory(good: Good, spoiled: Path) -> None:
    rewrite(spoiled, good["mlp"], lambda header, _: header["description"].update(model="out of memory"))
    assert_refused(spoiled, "unknown model 'out of memory'")
    arguments = {"activation": "out of memory"}
    rewrite(
        spoiled, good["mlp"], lambda header, _: header["description"]["model_arguments"].update(arguments)
    )
    assert_refused(spoiled, "activation=out of memory")


ODD: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.sampled_from([10**9, 2**63, 1e-45, 1e30, -0.0, 0.5])
    | st.sampled_from(["layer", "batch", "none", "", "pack2", "int8"])
    | st.lists(st.integers(0, 70), max_size=4)
)


def leaves(value: Any) -> list[tuple[Any, Any]]:
    """Every place in nested lists and mappings."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, part in items for place in [(value, key), *leaves(part)]]


@given(data=st.data())
def test_whatever_is_changed_is_refused_in_words_or_gives_finite_outputs(
    good: Good, spoiled: Path, data: st.DataObject
) -> None:
    written: dict[str, Any] = {}

    def change(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        if data.draw(st.booleans()):
            place, key = data.draw(st.sampled_from(leaves(header)))
            place[key] = data.draw(ODD)
        else:
            name = data.draw(st.sampled_from(sorted(tensors)))
            what = data.draw(st.sampled_from(["value", "value", "value", "shape", "dtype", "gone", "extra"]))
            if what == "value":
                spot = data.draw(st.integers(0, tensors[name].numel() - 1)) if tensors[name].numel() else 0
                odd = [NAN, INF, 0.0, -1.0, 1e-45, 1e3]
                whole = tensors[name].is_floating_point()
                value = data.draw(st.sampled_from(odd) if whole else st.integers(0, 255))
                tensors[name].view(-1)[spot] = value
            elif what == "shape":
                tensors[name] = tensors[name].flatten().repeat(2)
            elif what == "dtype":
                tensors[name] = tensors[name].to(torch.float64)
            elif what == "gone":
                del tensors[name]
            else:
                tensors["extra"] = tensors[name].clone()
        written.update(header)

    rewrite(spoiled, good[data.draw(st.sampled_from(sorted(good)))], change)
    with contextlib.suppress(UserError):
        model, _ = load_packed(spoiled, REFERENCE)
        shape = written["description"]["model_arguments"].get("shape", SHAPE)
        with torch.no_grad():
            assert model(torch.randn(2, *shape)).isfinite().all()
