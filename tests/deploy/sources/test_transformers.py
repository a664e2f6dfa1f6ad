"""Folders of transformers, made by that package: the same logits, and refusals of what cannot be computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bitexp.common.errors import UserError
from bitexp.deploy.sources import find_source
from bitexp.deploy.sources.transformers import DEFAULTS
from tests.support.foreign_models import save_transformers

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # of transformers, about packages that it would like to have

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {}),
    (
        "Llama",
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ),
    ("Mistral", {"sliding_window": 16}),
    ("Qwen2", {}),
    ("Qwen3", {"head_dim": 8}),
    ("BitNet", {"hidden_act": "relu2"}),
]


@pytest.mark.parametrize(("kind", "changes"), KINDS, ids=str)
def test_it_computes_what_transformers_computes(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    theirs = save_transformers(tmp_path / "model", kind, **changes)
    source = find_source(str(tmp_path / "model"))
    tokens = torch.randint(37, (3, 12))
    ours = source.model()(tokens)
    torch.testing.assert_close(ours, theirs(tokens).logits, rtol=1e-5, atol=1e-5)
    assert source.describe()["model"] == "decoder"
    weights = source.weights()
    assert {name: t.shape for name, t in weights.items()} == {
        name: t.shape for name, t in source.model().state_dict().items()
    }


def test_what_a_config_does_not_say_is_what_transformers_takes_it_for(tmp_path: Path) -> None:
    save_transformers(tmp_path, "BitNet", hidden_act="relu2", rms_norm_eps=1e-5)
    file = tmp_path / "config.json"
    unsaid = ("rms_norm_eps", "rope_parameters", "rope_theta", "rope_scaling", "hidden_act")
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k not in unsaid}))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = torch.randint(37, (3, 40))
    ours = find_source(str(tmp_path)).model()(tokens)
    torch.testing.assert_close(ours, theirs(tokens).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "key"), [("Mistral", "sliding_window"), ("Qwen3", "head_dim")])
def test_defaults_of_a_family_are_those_of_transformers(kind: str, key: str) -> None:
    assert DEFAULTS[kind.lower()][key] == getattr(getattr(transformers, f"{kind}Config")(), key)


def test_a_model_in_several_files_is_one(tmp_path: Path) -> None:
    model: Any = save_transformers(tmp_path / "whole", "Llama")
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    one, several = find_source(str(tmp_path / "whole")), find_source(str(tmp_path / "shards"))
    assert all(torch.equal(tensor, several.weights()[name]) for name, tensor in one.weights().items())


def test_the_identity_is_that_of_the_content_and_not_of_the_place(tmp_path: Path) -> None:
    save_transformers(tmp_path / "a", "Llama")
    save_transformers(tmp_path / "b", "Llama")
    save_transformers(tmp_path / "c", "Llama", seed=1)
    a, b, c = (find_source(str(tmp_path / name)).identity for name in "abc")
    assert a == b != c


def pack(folder: Path, linear_class: str) -> dict[str, torch.Tensor]:
    """Rewrites a folder as BitNet's packed form has it; returns the ternary weights by their names."""
    tensors, ternary = load_file(folder / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        weight = tensors[name]
        scale = weight.abs().mean()
        codes = (weight / scale).round().clamp(-1, 1)
        ternary[name] = codes * scale
        quarters = (codes + 1).to(torch.uint8).reshape(4, -1, weight.shape[1])
        tensors[name] = quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6
        stored = scale if linear_class == "autobitlinear" else 1 / scale
        tensors[name.replace(".weight", ".weight_scale")] = stored.reshape(1)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "bitnet", "linear_class": linear_class, "quantization_mode": "offline"
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return ternary


@pytest.mark.parametrize("linear_class", ["bitlinear", "autobitlinear"])
def test_packed_weights_are_unpacked_by_the_rule_of_their_class(tmp_path: Path, linear_class: str) -> None:
    """The one class divides by the stored scale, the other multiplies: transformers' own formulas."""
    save_transformers(tmp_path / "m", "BitNet", hidden_act="relu2")
    ternary = pack(tmp_path / "m", linear_class)
    source = find_source(str(tmp_path / "m"))
    weights = source.weights()
    torch.testing.assert_close(
        weights["blocks.1.attn.q.weight"], ternary["model.layers.1.self_attn.q_proj.weight"]
    )
    torch.testing.assert_close(
        weights["blocks.0.ffn.down.weight"], ternary["model.layers.0.mlp.down_proj.weight"]
    )
    model, tokens = source.model(kernel="reference"), torch.randint(37, (2, 9))
    q = model.get_submodule("blocks.0.attn.q")
    x = torch.randn(5, 24)
    scale = 127 / x.abs().amax(-1, keepdim=True)
    expected = (x * scale).round() / scale @ ternary["model.layers.0.self_attn.q_proj.weight"].t()
    torch.testing.assert_close(q(x), expected, rtol=1e-5, atol=1e-5)
    assert model(tokens).isfinite().all()


def changed_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def without_numbers(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, folder / "model.safetensors")


def elsewhere(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


REFUSED: list[tuple[Callable[[Path], None], str]] = [
    (changed_config(model_type="mamba"), "model_type is mamba"),
    (changed_config(hidden_act="gelu_new"), "hidden_act is gelu_new"),
    (
        changed_config(rope_parameters={"rope_type": "yarn", "factor": 4.0}),
        "rotary positions are of the type yarn",
    ),
    (changed_config(num_hidden_layers=10**9), "layers"),
    (changed_config(hidden_size=10**12), "shape|multiple"),
    (changed_config(vocab_size=38), "embed.weight has the shape"),
    (changed_config(hidden_size="large"), "'large' as hidden_size"),
    (changed_config(quantization_config={"quant_method": "gptq"}), "quantized by gptq"),
    (changed_config(num_attention_heads=5), "heads"),
    (lambda folder: (folder / "config.json").write_text("{"), "damaged"),  # type: ignore[list-item, return-value]
    (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
    (cut, "damaged"),
    (without_numbers, "no finite numbers"),
    (elsewhere, "outside of its folder"),
]


@pytest.mark.parametrize(("spoil", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_is_damaged_or_not_computed_is_refused_in_words(
    tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    folder = tmp_path / "model"
    save_transformers(folder, "Llama")
    spoil(folder)
    with pytest.raises(UserError, match=words) as refused:
        find_source(str(folder)).model()
    assert str(folder) in str(refused.value)
