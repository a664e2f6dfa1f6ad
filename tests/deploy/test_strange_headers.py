"""Packed files that somebody else made: intact, and describing what is not there."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bitexp.common.errors import UserError
from bitexp.deploy.packed_file import load_packed, read_packed
from bitexp.models import MODELS
from tests.support.packed_files import (
    REFERENCE,
    assert_refused,
    rewrite,
)  # fmt: skip


def test_an_unchanged_rewrite_loads(original: tuple[bytes, Tensor, Tensor], spoiled: Path) -> None:
    content, x, expected = original
    rewrite(spoiled, content, lambda header, tensors: None)
    loaded, _ = load_packed(spoiled, REFERENCE)
    assert torch.equal(loaded(x), expected)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("model", "mpl", r"unknown model 'mpl'\. Did you mean 'mlp'\?"),
        ("quantizer", {"weights": "ternary"}, "unknown weight quantizer 'ternary'.*ternary_mean"),
        ("quantizer", "ternary", "unknown weight quantizer 'ternary'.*ternary_mean"),
        ("include", ["layer"], r"no layer of the model is called 'layer'.*'layers'"),
        ("model_arguments", {"shape": [1, 8, 8]}, "missing 4 required keyword-only arguments"),
        ("quantizer", {"weights": {"bits": 4}}, "has no name"),
        ("quantizer", {"weight": "ternary_mean"}, "unknown key 'weight'.*'weights'"),
        ("quantizer_arguments", {"norm": "layer"}, "unexpected keyword argument 'quantizer_arguments'"),
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
        ("layout", "pack5"),
        ("layout", ["pack5"]),
        ("layout", {"name": "pack9", "low": -1, "stride": 1}),
        ("layout", {"name": "pack1", "low": -1, "stride": 2}),
        ("layout", {"name": "pack5", "low": 0, "stride": 1}),
        ("layout", {"name": "pack5", "low": -1, "stride": 2}),
        ("norm", "none"),
        ("activations", {"name": "int8", "qmax": 128}),
        ("activations", {"name": "int4"}),
        ("activations", "int8"),
        ("weights", {"name": "binary"}),
        ("levels", {"low": -1, "high": 1, "stride": 2}),
        ("transform", {"name": "hadamard"}),
        ("shift", True),
        ("shape", [24, 65]),
        ("shape", [24]),
        ("conv", [[1, 1], [0, 0], [1, 1], 1]),
        ("conv", 3),
        ("bias", "scaled"),
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


@pytest.mark.parametrize("part", ["model", "quantizer", "weights"])  # quantizer: as in format 1
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
    described: dict[str, Any] = {part: name, f"{part}_arguments": target}
    if part == "weights":
        described = {"quantizer": {"weights": {"name": name, "_target_": name}}}
    rewrite(spoiled, original[0], lambda header, _: header["description"].update(described))
    assert_refused(spoiled, "unknown model" if part == "model" else "unknown weight quantizer")
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
        quantizer, layers = header["description"]["quantizer"], header["layers"].values()
        places += [quantizer, quantizer["weights"], quantizer["activations"], *layers]
        places += [layer["layout"] for layer in layers]
        place = data.draw(st.sampled_from(places))
        place[data.draw(st.sampled_from(sorted(place)))] = data.draw(JSON)

    rewrite(spoiled, original[0], change)
    with contextlib.suppress(UserError):
        load_packed(spoiled, REFERENCE)
    with contextlib.suppress(UserError):
        read_packed(spoiled)
