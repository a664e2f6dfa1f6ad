"""Embeddings and full-precision linear layers as int8 codes: what is tested is what the file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bitexp.common.errors import UserError
from bitexp.deploy.description import Description
from bitexp.deploy.embeddings import decoded, encoded, floats, held_codes, int8_codes, round_embeddings
from bitexp.deploy.frozen import freeze
from bitexp.deploy.packed_file import load_packed, read_packed, save_packed, sizes, unpack
from bitexp.kernels.cpu.jit import missing
from bitexp.models import build_model

EXPONENTS = st.integers(-30, 30)


@given(seed=st.integers(0, 10**6), exponent=EXPONENTS, rows=st.integers(1, 200), features=st.integers(1, 40))
def test_codes_are_found_again_in_the_floats_they_make(
    seed: int, exponent: int, rows: int, features: int
) -> None:
    weight = torch.randn(rows, features, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    weight[0] = 0
    codes, scale = int8_codes(weight)
    made = floats(codes, scale)
    assert ((made - weight).abs() <= 0.5001 * scale[:, None]).all()
    held = held_codes(made)
    assert held is not None
    assert torch.equal(floats(*held), made)
    assert torch.equal(held[0], codes)


def test_ordinary_floats_hold_no_codes() -> None:
    assert held_codes(torch.randn(3, 50, generator=torch.Generator().manual_seed(0))) is None
    held = held_codes(torch.zeros(2, 3))
    assert held is not None
    assert not held[0].any()


SIZES: dict[str, Any] = {"vocabulary": 61, "context": 16, "dim": 32, "depth": 1, "init_std": 0.3}


def arguments(**sizes: Any) -> dict[str, Any]:
    """Of the decoder."""
    from bitexp.config.choices import read_choice

    section = read_choice("model", "decoder")
    del section["full_precision"], section["name"]
    return section | SIZES | sizes


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Tensor]:
    """A file with int8 embeddings, and the logits of what was packed."""
    torch.manual_seed(0)
    description = Description(
        "decoder", arguments(tied=request.param), "ternary_mean", exclude=["embed", "head"]
    )
    model = description.build().eval()
    before = model(torch.arange(9)[None])
    round_embeddings(model, [])
    expected = model(torch.arange(9)[None]).detach()
    assert 0 < (expected - before).abs().max() < 0.3
    freeze(model)
    save_packed(tmp_path / "packed.safetensors", model, description, embeddings="int8")
    return tmp_path / "packed.safetensors", expected


def test_a_loaded_model_has_the_bits_of_the_rounded_one(packed: tuple[Path, Tensor]) -> None:
    path, expected = packed
    model, _ = load_packed(path, "reference")
    assert torch.equal(model(torch.arange(9)[None]), expected)
    _, tensors = read_packed(path)
    assert tensors["embed.weight"].dtype == torch.int8
    assert tensors["embed.weight.scale"].shape == (61,)
    outside = {name for name in tensors if not name.startswith("blocks.")}
    tied = "head.weight" not in outside
    assert sizes(read_packed(path))["total_bytes"] - sizes(read_packed(path))["body_bytes"] == (
        (61 * 32 + 4 * 61) * (2 - tied) + 4 * 32 * 1
    )


@pytest.mark.skipif(missing() is not None, reason="numba is not installed")
def test_the_compiled_head_reads_the_codes(packed: tuple[Path, Tensor]) -> None:
    from bitexp.deploy.compiled import CompiledDecoder

    path, expected = packed
    model, _ = load_packed(path, "cpu")
    compiled = CompiledDecoder(model)  # type: ignore[arg-type]
    (head,) = [step for step in compiled.compiled.steps if step["scale"] and step["outputs"] == 61]
    assert head["weight"]
    cache = compiled.cache()
    logits = torch.cat([compiled.step([token], [cache]).clone() for token in range(9)])
    torch.testing.assert_close(logits, expected[0], rtol=1e-3, atol=1e-3)


def test_other_floats_are_not_packed_as_codes(tmp_path: Path) -> None:
    description = Description("decoder", arguments(), "ternary_mean", exclude=["embed", "head"])
    model = description.build()
    freeze(model)
    with pytest.raises(ValueError, match=r"embed\.weight is no int8 codes .* use round_embeddings first"):
        save_packed(tmp_path / "x.safetensors", model, description, embeddings="int8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed.weight.scale": None}, "embed.weight has no scale for each of its rows"),
        ({"embed.weight.scale": torch.ones(60)}, "embed.weight has no scale for each of its rows"),
        (
            {"embed.weight.scale": torch.ones(61).double()},
            "embed.weight.scale holds values that are no scales",
        ),
        ({"embed.weight.scale": torch.zeros(61)}, "embed.weight.scale holds values that are no scales"),
        ({"embed.weight.scale": torch.full((61,), torch.nan)}, "holds values that are no scales"),
        (
            {"embed.weight": torch.full((61, 32), -128, dtype=torch.int8)},
            "embed.weight holds codes below -127",
        ),
        ({"norm.weight.scale": torch.ones(32)}, "no place for norm.weight.scale"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    packed: tuple[Path, Tensor], change: dict[str, Tensor | None], message: str
) -> None:
    from bitexp.kernels import KERNELS

    path, _ = packed
    header, tensors = read_packed(path)
    changed = {name: t for name, t in {**tensors, **change}.items() if t is not None}
    with pytest.raises(UserError, match=message):
        unpack(path, (header, changed), KERNELS.get("reference"))


def test_there_and_back_leaves_other_tensors_alone() -> None:
    tensors = {"a": floats(*int8_codes(torch.randn(3, 4))), "b": torch.randn(3, 4), "c": torch.arange(3)}
    back = decoded(encoded(tensors, ["a", "not there"]))
    assert set(back) == set(tensors)
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_linear_layers_of_the_body_are_left_alone() -> None:
    model = build_model("mlp", shape=(1, 8, 8), classes=10, hidden=[16])
    state = {name: t.clone() for name, t in model.state_dict().items()}
    round_embeddings(model, ["layers.0"])
    changed = {name for name, t in model.state_dict().items() if not torch.equal(t, state[name])}
    assert changed == {"head.weight"}
