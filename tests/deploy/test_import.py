"""Models come back from other forms: the same codes, the same outputs, and damage is a sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitexp.deploy import generate, import_model
from bitexp.deploy.exporters.exporter import Packed
from bitexp.deploy.exporters.source import read_source
from bitexp.deploy.exporters.writing import build, write
from bitexp.deploy.packed_file import read_packed
from bitexp.deploy.sources import find_source
from tests.support.exports import PORTABLE, described, packed, tokens

RMS = {"norm": "rms"}


def round_trip(source: Packed, folder: Path, target: str, **options: Any) -> Packed:
    """Exported, imported again."""
    write(build(target, options), source, folder / target)
    place = folder / target / ("model.gguf" if target == "gguf" else "")
    assert import_model.main([str(place), "--out", str(folder / "back.safetensors")]) == 0
    return read_source(folder / "back.safetensors")


def codes(source: Packed) -> dict[str, Tensor]:
    """The packed codes of a file by layer."""
    return {n: t for n, t in read_packed(source.path)[1].items() if n.endswith(".packed")}


@pytest.mark.parametrize(
    ("target", "options", "quantizer", "changes", "sizes"),
    [
        ("transformers", {}, "b158", {}, {}),
        (
            "transformers",
            {"form": "autobitlinear"},
            "ternary_median",
            RMS,
            {"activation": "relu2", "tied": True},
        ),
        ("gguf", {}, "b158", {}, PORTABLE | {"tied": False}),
        ("gguf", {"type": "tq1_0"}, "ternary_mean", RMS, PORTABLE),
        ("gguf", {"type": "q1_0"}, "binary", RMS, PORTABLE),
        ("gguf", {"type": "f16"}, "b158", {"activations": "none"}, {}),
    ],
    ids=["bitlinear", "autobitlinear", "llama", "bitnet", "binary", "f16"],
)
def test_a_model_survives_the_way_out_and_back(
    tmp_path: Path, target: str, options: Any, quantizer: str, changes: dict[str, Any], sizes: dict[str, Any]
) -> None:
    source = packed(tmp_path, described(quantizer, changes, **sizes))
    back = round_trip(source, tmp_path, target, **options)
    if options.get("type") != "f16":
        before, after = codes(source), codes(back)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        largest = (source.model(tokens()) - back.model(tokens())).abs().amax(-1).flatten()
    assert float(largest.median()) < 1e-5


@pytest.mark.parametrize("target", ["transformers", "gguf"])
def test_a_layer_of_zeros_comes_back(tmp_path: Path, target: str) -> None:
    source = packed(tmp_path, described("b158", **PORTABLE), filled={"blocks.0.attn.v.weight": 0.0})
    back = codes(round_trip(source, tmp_path, target))
    assert all(torch.equal(tensor, back[name]) for name, tensor in codes(source).items())


@pytest.mark.parametrize("target", ["transformers", "gguf"])
def test_a_ternary_head_stays_one(tmp_path: Path, target: str) -> None:
    body = described("b158", **PORTABLE | {"tied": False})
    source = packed(tmp_path, replace(body, exclude=["embed"]))
    back = round_trip(source, tmp_path, target)
    place = tmp_path / target / ("model.gguf" if target == "gguf" else "")
    with torch.no_grad():
        expected = back.model(tokens())
        assert torch.equal(find_source(str(place)).model(kernel="reference")(tokens()), expected)
        # llama.cpp has the scale of a head in fp16
        assert float((expected - source.model(tokens())).abs().max()) < 1e-3 * float(expected.abs().max())


def test_a_folder_that_transformers_wrote_computes_the_same(tmp_path: Path) -> None:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path / "llama")
    assert import_model.main([str(tmp_path / "llama"), "--out", str(tmp_path / "back.safetensors")]) == 0
    x = tokens() % 40
    with torch.no_grad():
        expected = theirs(x).logits
        found = read_source(tmp_path / "back.safetensors").model(x)
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_keep_the_type_that_they_are_stored_in(tmp_path: Path, dtype: torch.dtype) -> None:
    source = packed(tmp_path, described("b158", sub_norm=True, tied=True))
    write(build("transformers", {}), source, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    halves = {n: t.to(dtype) if "norm" in n or "embed" in n else t for n, t in load_file(file).items()}
    save_file(halves, file, {"format": "pt"})
    assert import_model.main([str(tmp_path / "out"), "--out", str(tmp_path / "back.safetensors")]) == 0
    back = read_source(tmp_path / "back.safetensors")
    tensors = read_packed(back.path)[1]
    assert {t.dtype for n, t in tensors.items() if n.endswith("weight")} == {dtype}
    assert torch.equal(back.model.get_parameter("embed.weight"), tensors["embed.weight"].float())
    before, after = codes(source), codes(back)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_latent_weights_are_quantized_as_bitnet_does(tmp_path: Path) -> None:
    source = packed(tmp_path, described("full", sub_norm=True))
    write(build("transformers", {}), source, tmp_path / "out")
    config = tmp_path / "out" / "config.json"
    online = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": online}))
    assert import_model.main([str(tmp_path / "out"), "--out", str(tmp_path / "back.safetensors")]) == 0
    ours = find_source(str(tmp_path / "out")).model(kernel="reference")
    with torch.no_grad():
        assert torch.equal(read_source(tmp_path / "back.safetensors").model(tokens()), ours(tokens()))


def test_a_tokenizer_of_another_model_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = packed(tmp_path, described("b158", vocabulary=100))
    assert generate.main([str(source.path), "--prompt", "A", "--tokens", "3", "--kernel", "reference"]) == 0
    assert generate.main([str(source.path), "--prompt", "é", "--tokens", "3"]) == 2
    assert "gives the id 195, and its model has 100 ids" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kept", "code"), [(None, 0), (["lm_head"], 0), ([], 2), (["lm_head", "model.layers.0.mlp"], 2)]
)
def test_latent_weights_of_some_layers_alone_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: list[str] | None, code: int
) -> None:
    write(build("transformers", {}), packed(tmp_path, described("full", sub_norm=True)), tmp_path / "out")
    config = tmp_path / "out" / "config.json"
    online = {"quant_method": "bitnet", "quantization_mode": "online", "modules_to_not_convert": kept}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": online}))
    words = [str(tmp_path / "out"), "--out", str(tmp_path / "back.safetensors")]
    assert import_model.main(words) == code
    assert ("modules_to_not_convert" in capsys.readouterr().err) == (code == 2)


def test_a_model_whose_logits_are_no_numbers_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = packed(tmp_path, described("b158"), filled={"head.weight": 3e38})
    assert generate.main([str(source.path), "--temperature", "1"]) == 2
    assert "logits that are no numbers" in capsys.readouterr().err


def spoil(folder: Path, how: str) -> None:
    """Damages an exported folder."""
    config, weights = folder / "config.json", folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if how == "a bit pattern that is no code":
        place = content.index(b"}}") + 400
        content[-64:] = b"\xff" * 64
        content[place : place + 4096] = b"\xff" * 4096
        weights.write_bytes(content)
    elif how == "cut short":
        weights.write_bytes(content[: len(content) // 2])
    elif how == "another shape":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": 128}))
    elif how == "another family":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "gemma"}))
    elif how == "scaled rotations":
        rope = {"rope_type": "llama3", "rope_theta": 10000.0}
        config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_parameters": rope}))
    elif how == "ties that are a word":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": "false"}))
    elif how.startswith("another "):
        said = json.loads(config.read_text())
        said["quantization_config"][how.removeprefix("another ")] = "int4"
        config.write_text(json.dumps(said))
    elif how.startswith("a tokenizer of "):
        (folder / "tokenizer.json").write_bytes(how.removeprefix("a tokenizer of ").encode("latin-1"))


@pytest.mark.parametrize(
    "how",
    [
        "a bit pattern that is no code",
        "cut short",
        "another shape",
        "another family",
        "scaled rotations",
        "ties that are a word",
        "another linear_class",
        "another quantization_mode",
        "a tokenizer of {",
        "a tokenizer of []",
        "a tokenizer of \xff",
    ],
)
def test_damage_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str) -> None:
    write(build("transformers", {}), packed(tmp_path, described("b158")), tmp_path / "out")
    spoil(tmp_path / "out", how)
    capsys.readouterr()
    assert import_model.main([str(tmp_path / "out"), "--out", str(tmp_path / "back.safetensors")]) == 2
    assert str(tmp_path / "out") in capsys.readouterr().err
    assert not (tmp_path / "back.safetensors").exists()


@pytest.mark.parametrize("how", ["cut", "magic", "bytes", "empty"])
def test_a_damaged_gguf_file_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    write(build("gguf", {}), packed(tmp_path, described("b158", **PORTABLE)), tmp_path / "out")
    path = tmp_path / "out" / "model.gguf"
    content = bytearray(path.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    elif how == "magic":
        content[:4] = b"GGML"
    elif how == "bytes":
        content[40:400] = b"\xff" * 360
    else:
        content = bytearray()
    path.write_bytes(content)
    capsys.readouterr()
    assert import_model.main([str(path), "--out", str(tmp_path / "back.safetensors")]) == 2
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "factor", "code"), [("linear", 4.0, 2), ("yarn", 1.0, 2), ("linear", 1.0, 0), ("none", 4.0, 0)]
)
def test_scaled_rotations_of_a_gguf_file_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    factor: float,
    code: int,
) -> None:
    import gguf

    class Scaled(gguf.GGUFWriter):
        def add_rope_freq_base(self, value: float) -> None:
            super().add_rope_freq_base(value)
            self.add_rope_scaling_type(gguf.RopeScalingType(kind))
            self.add_rope_scaling_factor(factor)

    source = packed(tmp_path, described("b158", **PORTABLE))
    monkeypatch.setattr(gguf, "GGUFWriter", Scaled)
    write(build("gguf", {}), source, tmp_path / "out")
    words = [str(tmp_path / "out" / "model.gguf"), "--out", str(tmp_path / "back.safetensors")]
    assert import_model.main(words) == code
    assert ("rotary positions are scaled" in capsys.readouterr().err) == (code == 2)
