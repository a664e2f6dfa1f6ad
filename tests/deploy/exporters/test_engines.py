"""What was exported runs in its engine and computes what the packed file computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bitexp.data.text.tokenizers import load_tokenizer, train_bpe
from bitexp.deploy.agreement import MARGIN_OF_TOKENS, Anew, agreement, continuation
from bitexp.deploy.description import Description
from bitexp.deploy.engines import ENGINES
from bitexp.deploy.engines.llama_cpp import Llama
from bitexp.deploy.exporters.exporter import Packed
from bitexp.deploy.exporters.writing import build, write
from tests.support.exports import PORTABLE, described, packed, tokens
from tests.support.marks import others_slow

CLOSE, FLIPPED = 1e-5, 0.02
"""Differences of logits, of their largest: by rounding, and where an activation code is another."""
RMS = {"norm": "rms"}
CNN = {"shape": (1, 8, 8), "classes": 10, "widths": [6, 9], "pool": [2, 1], "kernel": 3, "dropout": 0.0}
IMAGE = {"channels": 1, "size": [8, 8], "divide_by": 16, "mean": [0.3], "std": [0.4]}
CHANNEL = {"granularity": "channel"}


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    """The logits of most tokens are equal but for rounding, those of the others but for a code."""
    largest = (ours - theirs).abs().amax(-1).flatten() / ours.abs().max()
    assert float(largest.median()) < CLOSE
    assert float(largest.max()) < FLIPPED


def outputs(source: Packed, engine: str, folder: Path, **options: Any) -> tuple[Tensor, Tensor]:
    """Logits of bitexp and of an engine."""
    kind = ENGINES.get(engine)
    exporter = build(kind.target, options)
    exporter.check(source.model, source.preprocessing.get("tokenizer"))
    write(exporter, source, folder / kind.target)
    x = tokens()
    with torch.no_grad():
        return source.model(x), kind(folder / kind.target).outputs(x)


@pytest.mark.parametrize("form", others_slow(["bitlinear", "autobitlinear"], ["bitlinear"]))
@pytest.mark.parametrize(
    ("quantizer", "changes", "sizes"),
    [
        ("b158", {}, {}),
        ("b158", {}, {"sub_norm": True, "activation": "relu2", "tied": True}),
        ("ternary_median", RMS, {}),
        ("binary", RMS, {"kv_heads": 4}),
    ],
    ids=["llama", "bitnet", "norms of the layers", "binary"],
)
def test_transformers(
    tmp_path: Path, form: str, quantizer: str, changes: dict[str, Any], sizes: dict[str, Any]
) -> None:
    source = packed(tmp_path, described(quantizer, changes, **sizes))
    ours, theirs = outputs(source, "transformers", tmp_path, form=form)
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("quantizer", "changes", "sizes"),
    [("full", {}, {}), ("full", {}, {"sub_norm": True, "activation": "relu2"}), ("full_norm", RMS, {})],
    ids=["llama", "bitnet", "norms of the layers"],
)
def test_transformers_in_full_precision(
    tmp_path: Path, quantizer: str, changes: dict[str, Any], sizes: dict[str, Any]
) -> None:
    ours, theirs = outputs(packed(tmp_path, described(quantizer, changes, **sizes)), "transformers", tmp_path)
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("quantizer", "changes", "sizes", "kind"),
    [
        ("b158", {}, PORTABLE | {"tied": False}, "tq2_0"),
        ("b158", {}, PORTABLE, "tq1_0"),
        ("ternary_mean", RMS, PORTABLE, "tq2_0"),
        ("binary", RMS, PORTABLE, "tq2_0"),
        ("full", {}, {}, "f32"),
        ("full", {}, {"sub_norm": True, "tied": True}, "f32"),
        ("b158", {"activations": "none"}, {}, "f32"),
        ("ternary_mean", {**RMS, "activations": "none", "weights": CHANNEL}, {"tied": True}, "f32"),
        ("full", {}, {"vocabulary": 300}, "f32"),
    ],
    ids=[
        "llama",
        "tq1_0",
        "norms of the layers",
        "binary",
        "full",
        "full, bitnet",
        "floats",
        "channels",
        "rows without a word",
    ],
)
def test_llama_cpp(
    tmp_path: Path, quantizer: str, changes: dict[str, Any], sizes: dict[str, Any], kind: str
) -> None:
    source = packed(tmp_path, described(quantizer, changes, **sizes))
    ours, theirs = outputs(source, "llama.cpp", tmp_path, type=kind)
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("quantizer", "changes", "kind"),
    [
        ("binary", RMS, "q1_0"),
        ("ternary_mean", {**RMS, "weights": CHANNEL}, "tq2_0"),
        ("ternary_mean", {**RMS, "weights": {"granularity": "group", "group_size": 256}}, "tq2_0"),
        ("b158", {}, "f16"),
        ("b158", {}, "f32"),
    ],
)
def test_llama_cpp_where_it_rounds_otherwise(
    tmp_path: Path, quantizer: str, changes: dict[str, Any], kind: str
) -> None:
    source = packed(tmp_path, described(quantizer, changes, **PORTABLE))
    ours, theirs = outputs(source, "llama.cpp", tmp_path, type=kind)
    assert float((ours - theirs).square().mean().sqrt()) < 0.04 * float(ours.std())


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
@pytest.mark.parametrize(
    "description",
    [
        described("ternary_mean"),
        described("int", {"weights": {"bits": 4}}),
        Description(
            "cnn",
            CNN,
            "ternary_mean",
            exclude=["stem", "head"],
        ),
    ],
    ids=["decoder", "int4", "cnn"],
)
def test_graphs(tmp_path: Path, engine: str, description: Description) -> None:
    source = packed(tmp_path, description, None if description.model == "decoder" else dict(IMAGE))
    kind = ENGINES.get(engine)
    write(build(kind.target, {}), source, tmp_path / "out")
    x = tokens(3, 17) if description.model == "decoder" else torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        ours = source.model(x)
    theirs = kind(tmp_path / "out").outputs(x)
    if engine == "torch":
        assert torch.equal(ours, theirs)
    else:
        assert_same(ours, theirs)


@pytest.fixture(scope="module")
def bitnet(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return packed(tmp_path_factory.mktemp("bitnet"), described("b158", sub_norm=True, **PORTABLE))


def compared(source: Packed, engine: str, folder: Path) -> list[str]:
    """What is wrong with an engine by the criterion."""
    theirs = ENGINES.get(engine)(folder).outputs
    x = tokens(4)
    found = agreement(source.model, theirs, [(x[:, :-1], x[:, 1:])], MARGIN_OF_TOKENS)
    found.text = continuation(Anew(source.model), Anew(theirs), x[0, :8].tolist(), 20)
    return found.flaws(1.0)


@pytest.mark.parametrize("wrong", ["nothing", "the rotation", "the scale", "the activation"])
def test_a_wrong_export_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bitnet: Packed, wrong: str
) -> None:
    source = bitnet
    if wrong == "the rotation":
        source = packed(tmp_path, described("b158", **PORTABLE))
        monkeypatch.setattr("bitexp.deploy.exporters.gguf_file.Writer.turns", False)
    elif wrong == "the activation":
        source = packed(tmp_path, described("b158", sub_norm=True, activation="relu2", **PORTABLE))
        monkeypatch.setattr("bitexp.deploy.exporters.gguf_file.GgufFile.check", lambda *args: None)
    write(build("gguf", {}), source, tmp_path / "gguf")
    if wrong == "the scale":
        write(build("transformers", {}), source, tmp_path / "transformers")
        config = tmp_path / "transformers" / "config.json"
        config.write_text(config.read_text().replace('"bitlinear"', '"autobitlinear"'))
        assert compared(source, "transformers", tmp_path / "transformers")
    else:
        assert bool(compared(source, "llama.cpp", tmp_path / "gguf")) == (wrong != "nothing")


@pytest.mark.parametrize(
    "engine", ["transformers", "llama.cpp", "c", pytest.param("onnxruntime", marks=pytest.mark.slow)]
)
def test_a_text_that_grows_has_the_logits_of_one_that_is_computed_anew(
    tmp_path: Path, bitnet: Packed, engine: str
) -> None:
    kind, x = ENGINES.get(engine), tokens(1, 24)
    write(build(kind.target, {}), bitnet, tmp_path / "out")
    runner = kind(tmp_path / "out")
    anew, exact = runner.outputs(x)[0], engine != "llama.cpp"  # its cache is fp16 where it writes
    for _ in range(2):  # a new text knows nothing of the one before
        text = runner.text()
        assert text is not None
        rows = [text.read(x[0, :5].tolist()).clone()]
        rows += [text.read([token]).clone() for token in x[0, 5:].tolist()]
        off = (torch.stack(rows) - anew[4:]).abs().max() / anew.abs().max()
        assert float(off) < (CLOSE if exact else FLIPPED)
    one, other = (runner.text() or Anew(runner.outputs) if kept else Anew(runner.outputs) for kept in (1, 0))
    assert continuation(one, other, x[0].tolist(), 20).place is None


TEXTS = [
    "def f(x):\n\treturn 'A\u0101\u0100\u00e9\u4e2d \U0001f600' # <|endoftext|>  ",
    "",
    "  two  spaces\r\n",
]


@pytest.mark.parametrize("pieces", [False, True], ids=["bytes", "byte pairs"])
def test_tokenizers_give_the_same_ids_everywhere(tmp_path: Path, pieces: bool) -> None:
    import transformers

    text = train_bpe(TEXTS * 3, 300).to_json() if pieces else "bytes"
    own = load_tokenizer(text, "test")
    source = packed(tmp_path, described("full", vocabulary=own.size), {"tokenizer": text})
    for target in ("transformers", "gguf"):
        write(build(target, {}), source, tmp_path / target)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "transformers")
    llama = Llama(tmp_path / "gguf" / "model.gguf")
    assert theirs.eos_token_id == own.end
    for given in TEXTS:
        expected = own.encode([given])[0].tolist()
        assert theirs(given, add_special_tokens=False).input_ids == expected
        assert llama.tokenize(given) == expected
        assert llama.text(expected).decode() == given
        assert theirs.decode(expected) == given


@pytest.mark.parametrize("kind", ["tq2_0", "f16"])
def test_a_quantized_head_goes_along(tmp_path: Path, kind: str) -> None:
    description = described("b158", **PORTABLE | {"tied": False})
    whole = Description("decoder", description.model_arguments, description.quantizer, exclude=["embed"])
    source = packed(tmp_path, whole)
    ours, theirs = outputs(source, "llama.cpp", tmp_path, type=kind)
    assert float((ours - theirs).square().mean().sqrt()) < 0.02 * float(ours.std())
    ours, theirs = outputs(source, "transformers", tmp_path)
    assert_same(ours, theirs)
