"""What cannot leave is refused, with the reason and the nearest setting that can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitexp.deploy import Description, export
from bitexp.deploy.exporters import expressible
from bitexp.deploy.exporters.exporter import InexpressibleError
from bitexp.deploy.exporters.gguf_file import GgufFile
from tests.support.exports import PORTABLE, described, packed

RMS = {"norm": "rms"}
GROUP = {"granularity": "group", "group_size": 64}
NOT_TRANSFORMERS = [
    ("ternary_mean", {}, {}, "quantizer.norm=rms"),
    ("reloaded", RMS, {}, "quantizer.activations.qmax=127"),
    ("b158", {"weights": {"granularity": "channel"}}, {}, "quantizer.weights.granularity=tensor"),
    ("int", {**RMS, "weights": {"bits": 4}}, {}, "-1, 0 and 1"),
    ("ternary_hadamard", RMS, {}, "transform"),
    ("tequila", {**RMS, "weights": {"granularity": "tensor"}}, {}, "a constant"),
    ("b158", {}, {"sub_norm": True, "head_dim": 8}, "model.head_dim=null"),
    ("ternary_mean", RMS, {"head_dim": 8}, "model.head_dim=null"),
    ("b158", {}, {"dim": 36, "heads": 2, "mlp_ratio": 1.5, "kv_heads": 1}, "multiples of 4"),
    ("ternary_mean", RMS, {"norm_eps": 1e-6}, "model.norm_eps=1e-05"),
    ("b158", {"layers": [{"match": "*.down", "weights": "none", "activations": "none"}]}, {}, "all layers"),
    ("b158", {"layers": [{"match": "*.down", "activations": "none"}]}, {}, "one quantizer.activations"),
]
NOT_GGUF = [
    ("ternary_mean", {}, {}, {}, "quantizer.norm=rms"),
    ("b158", {}, {"activation": "relu2"}, {}, "model.activation=silu"),
    ("b158", {}, {"sub_norm": True}, {}, "model.tied=true"),
    ("tequila", RMS, PORTABLE, {}, "a constant"),
    ("b158", {}, PORTABLE | {"sub_norm": True, "head_dim": 32}, {}, "model.head_dim=null"),
    ("b158", {}, {}, {"type": "tq2_0"}, "type=f16"),
    ("b158", {"weights": {"granularity": "channel"}}, {}, {"type": "tq2_0"}, "type=f32"),
    ("b158", {"weights": {"granularity": "channel"}}, PORTABLE, {"type": "f16"}, "type=f32"),
    ("b158", {"weights": GROUP}, PORTABLE, {"type": "f16"}, "type=f32"),
    ("full", {}, PORTABLE, {"type": "f16"}, "leave it out"),
    ("full", {}, PORTABLE, {"type": "tq2_0"}, "leave it out"),
    ("b158", {}, PORTABLE, {"type": "q1_0"}, "type=tq2_0"),
    ("int", {**RMS, "weights": {"bits": 4}}, PORTABLE, {"type": "tq1_0"}, "type=f32"),
    (
        "b158",
        {"weights": {"granularity": "group", "group_size": 64}},
        PORTABLE,
        {"type": "tq2_0"},
        "type=f32",
    ),
]


@pytest.mark.parametrize(("quantizer", "changes", "sizes", "hint"), NOT_TRANSFORMERS)
def test_not_for_transformers(
    quantizer: str, changes: dict[str, Any], sizes: dict[str, Any], hint: str
) -> None:
    reason = expressible(described(quantizer, changes, **sizes).build())["transformers"]
    assert reason is not None
    assert hint in reason


@pytest.mark.parametrize(("quantizer", "changes", "sizes", "options", "hint"), NOT_GGUF)
def test_not_for_llama_cpp(
    quantizer: str, changes: dict[str, Any], sizes: dict[str, Any], options: dict[str, Any], hint: str
) -> None:
    with pytest.raises(InexpressibleError, match=hint):
        GgufFile(**options).check(described(quantizer, changes, **sizes).build())


def test_a_frozen_model_and_its_description_say_the_same(tmp_path: Path) -> None:
    for description in (
        described("b158"),
        described("ternary_mean"),
        described("b158", sub_norm=True),
        described("tequila", {**RMS, "weights": {"granularity": "tensor"}}),
    ):
        source = packed(tmp_path, description)
        assert expressible(source.model) == expressible(description.build())


def test_the_command_says_what_can_leave(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = packed(tmp_path, described("ternary_mean"))
    assert export.main([str(source.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:2] == ["gguf", "no:"] for line in lines)
    assert any(line.split()[:2] == ["onnx", "can"] for line in lines)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--to", "gguf"], "quantizer.norm=rms"),
        (["--to", "gguff"], "Did you mean 'gguf'?"),
        (["--to", "gguf", "typ=f16"], "Did you mean 'gguf.type'?"),
        (["--to", "gguf", "type=f17"], "f17"),
        (["--to", "gguf", "f16"], "KEY=VALUE"),
    ],
)
def test_mistakes_are_sentences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], hint: str
) -> None:
    source = packed(tmp_path, described("ternary_mean"))
    assert export.main([str(source.path), *words]) == 2
    assert hint in capsys.readouterr().err
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("target", ["torch", "c"])
def test_what_shows_only_while_it_is_written_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    sizes = {
        "patch": 13,
        "dim": 8,
        "depth": 1,
        "heads": 2,
        "mlp_ratio": 1.0,
        "dropout": 0.0,
        "pool": "mean",
        "classes": 2,
    }
    exclude = ["patch_embed", "pos_embed", "head"]
    wide = Description("vit", {"shape": (1, 260, 260), **sizes}, "b158", exclude=exclude)
    source = packed(tmp_path, wide, {})
    assert export.main([str(source.path), "--to", target]) == 2
    assert {"torch": "what its inputs are", "c": "65,536"}[target] in capsys.readouterr().err
    assert not (tmp_path / "export" / target).exists()


def test_scales_that_fp16_does_not_hold_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    description = described("b158", {"weights": {"granularity": "channel"}}, **PORTABLE)
    source = packed(tmp_path, description, filled={"blocks.0.attn.v.weight": 1e5})
    assert export.main([str(source.path), "--to", "gguf"]) == 2
    assert "more than fp16 holds; use type=f32" in capsys.readouterr().err
    assert export.main([str(source.path), "--to", "gguf", "type=f32"]) == 0


def test_a_folder_of_ours_is_replaced_and_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = packed(tmp_path, described("b158"))
    words = [str(source.path), "--to", "gguf", "--out", str(tmp_path / "out")]
    assert export.main(words) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "model.gguf"]
    assert export.main([*words, "type=f32"]) == 0
    assert "F32" in (tmp_path / "out" / "README.md").read_text()
    (tmp_path / "out" / "README.md").write_text("mine")
    capsys.readouterr()
    assert export.main(words) == 2
    assert "was not exported by bitexp" in capsys.readouterr().err
    assert (tmp_path / "out" / "README.md").read_text() == "mine"
