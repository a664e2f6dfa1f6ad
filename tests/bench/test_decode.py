"""The benchmark of tokens one by one, and the peer that runs the same model."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import pytest
import torch

from bitexp.__main__ import main
from bitexp.deploy.frozen import freeze
from bitexp.kernels.cpu.jit import missing
from bitexp.models import build_model
from bitexp.models.decoder import Decoder
from bitexp.quant import quantize
from tests.support.processes import InProcess, Program

if missing():
    pytest.skip(str(missing()), allow_module_level=True)

from bitexp.kernels.cpu.dots import ISAS, supported

SMALL = ("--tokens", 3, "--context", 8, "--vocabulary", 50, "--rounds", 1)


@pytest.fixture
def bench(in_process: InProcess) -> Program:
    call = in_process(main, "bitexp")
    return lambda *words: call("bench", "decode", *words)


@pytest.mark.parametrize("texts", [1, 3])
def test_the_floor_is_read_beside_the_tokens(bench: Program, tmp_path: Path, texts: int) -> None:
    words = ("--models", "decoder", "--quantizer", "ternary_mean", "--texts", texts)
    ended = bench(*words, *SMALL, "--output", tmp_path)
    assert ended.code == 0, ended.err
    with (tmp_path / "decode.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    products = set() if ISAS[supported()[0]].paired else {"bare products"}
    assert set(rows) == {"reading the bytes", "compiled", "layer by layer"} | products
    streams = 4 * (4 * 1 * 4 + 2 * 3 * 4 + 1 * 10)  # blocks of 4 layers: q k v o, gate up, down
    head = 4 * 64 * 50
    assert int(rows["compiled"]["bytes"]) == 256 * streams + head
    assert ("llama.cpp TQ2_0 is skipped: " in ended.out) is (texts == 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--models", "vit"), "vit is not a language model, so it writes no tokens"),
        (
            ("--models", "decoder", "--quantizer", "ternary_int4"),
            "cannot be compiled: the kernel does not make",
        ),
        (("--models", "decoder", "--tokens", 9, "--context", 8), "--tokens=9 must be below --context=8"),
    ],
)
def test_what_cannot_be_measured_is_refused(bench: Program, words: tuple[object, ...], message: str) -> None:
    ended = bench("--rounds", 1, *words)
    assert ended.code == 2
    assert message in ended.err


def test_without_numba_there_is_nothing_to_measure(bench: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitexp.bench.decode.missing", lambda: "numba is not installed: pip install it")
    ended = bench("--rounds", 1)
    assert ended.code == 2
    assert "nothing can be compiled here: numba is not installed" in ended.err


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("xllamacpp", "gguf")),
    reason="xllamacpp or gguf is not installed",
)
@pytest.mark.parametrize("exclude", [["embed"], ["embed", "head"]])
def test_llama_cpp_computes_the_same_model(
    tmp_path: Path, exclude: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitexp.bench.decode import greedy, llama

    torch.manual_seed(0)
    sizes = {"dim": 256, "depth": 1, "heads": 4, "kv_heads": 2, "mlp_ratio": 1.0, "init_std": 0.1}
    model = build_model("decoder", vocabulary=50, context=32, **sizes)
    quantize(model, "b158", exclude=exclude)
    freeze(model.eval(), kernel="cpu")
    assert isinstance(model, Decoder)
    peer = llama(tmp_path, model)  # compares the logits of several tokens
    assert len(greedy(peer, 1, 5)) == 5
    monkeypatch.setattr("bitexp.deploy.exporters.gguf_file.Writer.turns", False)
    with pytest.raises(RuntimeError, match=r"llama\.cpp computes different logits"):
        llama(tmp_path, model)
