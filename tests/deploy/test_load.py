"""A run's model again: the packed file gives the tokens of the checkpoint, and the last run is found."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from bitexp.common.errors import UserError
from bitexp.common.files import write_json
from bitexp.data.text.tokenizers import load_tokenizer
from bitexp.deploy.frozen import FrozenLayer
from bitexp.deploy.load import find_run, load_run
from bitexp.kernels import KERNELS
from bitexp.models.decoder import Decoder
from bitexp.models.generation import Sampling, generate
from bitexp.quant.layers import quantized_layers
from tests.support.marks import others_slow

if TYPE_CHECKING:
    from bitexp.run.road import Outcome

TINY = (
    "+experiment=lm_ternary",
    "data=text",
    "data.context=32",
    "model.dim=32",
    "model.depth=1",
    "trainer.epochs=1",
    "trainer.train_batches=8",
    "trainer.eval_batches=1",
    "logger=csv",
    "callbacks.progress=none",
)
"""A language model of bytes that takes a quarter of a second."""

REFERENCE = KERNELS.get("reference")


@pytest.fixture
def train_text(train: Callable[..., Outcome], tmp_path: Path) -> Callable[..., Path]:
    """Trains the tiny model on a small text, with further overrides; returns the run's folder."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{n} times {n % 7} is {n * (n % 7)}.\n" for n in range(200)))

    def make(*overrides: str) -> Path:
        outcome = train(*TINY, f"data.files=[{text}]", *overrides, base=())
        assert outcome.status == "finished", outcome.result["reason"]
        return outcome.folder

    return make


def tokens(model: Any, sampling: Sampling, count: int = 48) -> list[int]:
    """More than the context, so that it is read anew."""
    return list(itertools.islice(generate(model, [0, *b"12 times"], sampling), count))


PRECISIONS = [f"quantizer={name}" for name in ("full", "ternary_mean", "ternary_median", "binary")]
OTHERS = [
    "quantizer=b158 model.sub_norm=true model.activation=relu2 model.kv_heads=1",
    "model.tied=true model.full_precision=[embed] trainer.precision=bf16-true",
    "quantizer=lsq callbacks.ema_decay=0.9",
    "quantizer=ternary_hadamard",
    "callbacks.ema_decay=0.9 quantizer.weights.granularity=channel",
]


@pytest.mark.parametrize(
    ("overrides", "kernel"),
    others_slow(
        [*itertools.product(PRECISIONS, ["reference", "int8"]), *((words, "reference") for words in OTHERS)],
        [(words, "reference") for words in (*PRECISIONS[:2], *OTHERS[:2])],
    ),
)
def test_the_packed_file_gives_the_tokens_of_the_trained_model(
    train_text: Callable[..., Path], overrides: str, kernel: str
) -> None:
    chosen = KERNELS.get(kernel)
    if reason := chosen.unavailable("cpu"):
        pytest.skip(f"kernel={kernel}: {reason}")
    folder = train_text(*overrides.split())
    packed, how = load_run(folder, "packed", chosen)
    latent, how_too = load_run(folder, "last", chosen)
    assert how == how_too
    assert load_tokenizer(how["tokenizer"], folder).size == 256
    quantizes = "quantizer=full" not in overrides
    assert any(isinstance(module, FrozenLayer) for module in packed.modules()) == quantizes
    assert all(layer.backend is chosen.backend for layer in quantized_layers(latent).values())
    assert bool(quantized_layers(latent)) == quantizes
    for model in (packed, latent):
        assert isinstance(model, Decoder)
        assert not model.training
        assert model.embed.weight.dtype == torch.float32
    reference, _ = load_run(folder / "packed.safetensors", "packed", REFERENCE)
    for sampling in (Sampling(0.0), Sampling(1.0, seed=1), Sampling(0.8, top_k=50, top_p=0.9, seed=2)):
        expected = tokens(latent, sampling)
        assert tokens(packed, sampling) == tokens(reference, sampling) == expected
        assert sampling.temperature == 0 or len(set(expected)) > 10


def test_the_best_validation_is_loaded_where_it_was_kept(train_text: Callable[..., Path]) -> None:
    worst_wins = "callbacks.checkpoint.mode=max"  # the first epoch, then: not the last
    folder = train_text("callbacks.checkpoint.monitor=val/loss", worst_wins, "trainer.epochs=2")
    best, packed, last = (load_run(folder, weights, REFERENCE)[0] for weights in ("best", "packed", "last"))
    sampling = Sampling(1.0, seed=1)
    assert tokens(best, sampling) == tokens(packed, sampling)
    kept = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(best.embed.weight, kept["model.embed.weight"])
    assert not torch.equal(best.embed.weight, last.embed.weight)


def refused(path: Path, weights: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as told:
        load_run(path, weights, REFERENCE)
    assert str(path) in str(told.value)


def test_files_that_are_missing_or_damaged_are_named(train_text: Callable[..., Path]) -> None:
    folder = train_text()
    packed, description = folder / "packed.safetensors", folder / "model.json"
    last = folder / "checkpoints" / "last.ckpt"
    refused(packed, "last", "is a packed file: it has no checkpoint 'last'")
    refused(folder, "best", r"best\.ckpt cannot be used: it is missing")
    known, content = description.read_text(), packed.read_bytes()

    for spoiled in (None, "{", "[1]", "{}", known.replace('"decoder"', '"encoder"')):
        description.unlink(missing_ok=True)
        if spoiled is not None:
            description.write_text(spoiled)
        refused(folder, "last", r"model\.json does not describe the model of .*last\.ckpt: ")
    wider = json.loads(known)
    wider["model_arguments"]["dim"] = 64
    write_json(description, wider)
    refused(folder, "last", "size mismatch")
    assert load_run(folder, "packed", REFERENCE)  # it needs no other file

    packed.write_bytes(content[:-1])
    refused(folder, "packed", "is damaged")
    packed.unlink()
    refused(
        folder, "packed", "the command of the run makes it again; --weights last takes its last checkpoint"
    )
    (folder / "result.json").unlink()
    refused(folder, "packed", "has not finished; --weights last takes its last checkpoint")
    last.write_bytes(last.read_bytes()[:-100])
    refused(folder, "last", r"last\.ckpt cannot be used: it cannot be read")
    last.write_bytes(b"")
    refused(folder, "last", r"last\.ckpt cannot be used: it cannot be read")


def fake(folder: Path, ended: str | None, status: str = "finished") -> Path:
    """A run as far as `find_run` looks."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    result: dict[str, Any] = {"status": status, "kind": None, "reason": None, "source": "", "seconds": 1.0}
    result |= {"headline": "test/loss", "metrics": {"test/loss": 1.0}, "better": "min"}
    result |= {"lr_decay_sum": 0.0, "step_ms": None}
    write_json(folder / "result.json", result if ended is None else {**result, "ended": ended})
    return folder


def test_of_a_folder_of_runs_the_one_that_finished_last_is_taken(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    fake(runs / "a", "2026-01-03T10:00:00+00:00")
    late = fake(runs / "b", "2026-01-04T10:00:00+00:00")
    fake(runs / "c", "2026-01-02T10:00:00+00:00")
    fake(runs / "d", "2026-01-05T10:00:00+00:00", "failed")
    (runs / "e").mkdir()
    (runs / "e" / "config.yaml").touch()
    (runs / "f").mkdir()
    (runs / "f" / "result.json").write_text("{")
    assert find_run(runs) == late
    same = fake(runs / "A", "2026-01-04T10:00:00+00:00")  # in the same second, and later in it
    os.utime(late / "result.json", ns=(1, 1))
    assert find_run(runs) == same
    shutil.rmtree(late)
    shutil.rmtree(same)
    assert find_run(runs) == runs / "a"


def test_a_run_and_a_packed_file_are_found_as_they_are(tmp_path: Path) -> None:
    run = fake(tmp_path / "runs" / "a", None, "failed")
    assert find_run(run) == run
    (run / "packed.safetensors").touch()
    assert find_run(run / "packed.safetensors") == run / "packed.safetensors"


@pytest.mark.parametrize("name", ["nowhere", "runs", "run/checkpoints/last.ckpt", "nowhere.safetensors"])
def test_what_is_no_run_is_refused_in_words(tmp_path: Path, name: str) -> None:
    fake(tmp_path / "runs" / "a", "2026-01-03T10:00:00+00:00", "stopped")
    (fake(tmp_path / "run", None) / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(UserError, match=f"{name} is no run and holds no finished one: name a folder such as"):
        find_run(tmp_path / name)


def test_a_result_that_does_not_say_when_it_ended_is_the_oldest(tmp_path: Path) -> None:
    only = fake(tmp_path / "a", None)
    assert find_run(tmp_path) == only
    dated = fake(tmp_path / "0", "2026-01-03T10:00:00+00:00")
    assert find_run(tmp_path) == dated
