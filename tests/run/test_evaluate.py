"""What is deployed is what was trained, to the bit, and the weights that are tested are those that count."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from bitexp.common.format import size
from bitexp.deploy.packed_file import load_packed
from bitexp.kernels import choose_kernel
from bitexp.quant import QUANTIZERS, WEIGHTS
from bitexp.track.checkpoint_files import BEST, LAST, load_checkpoint
from tests.support.marks import others_slow

ROOT = Path(__file__).parents[2]
PRESETS = sorted(path.stem for path in (ROOT / "conf" / "quantizer").glob("*.yaml"))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def assert_the_packed_file_is_what_was_trained(outcome: Any) -> None:
    assert outcome.result["reason"] is None
    metrics = outcome.result["metrics"]
    tested = {name: value for name, value in metrics.items() if name.startswith("test/")}
    assert len(tested) == 2
    assert tested == {n.replace("_packed", ""): v for n, v in metrics.items() if n.startswith("test_packed/")}


@pytest.mark.parametrize("preset", others_slow(PRESETS, PRESETS[::3]))
def test_the_packed_file_tests_exactly_like_the_model(preset: str, train: Any) -> None:
    outcome = train(f"quantizer={preset}")
    assert_the_packed_file_is_what_was_trained(outcome)
    body = size(outcome.result["metrics"]["size/body_bytes"])
    assert f"; body {body}" in (outcome.folder / "train.log").read_text()  # what the header has counted


def test_the_presets_hold_every_weight_quantizer() -> None:
    chosen = {
        options.weights.name for q in QUANTIZERS.values() for options in q.variants() if options.weights
    }
    assert set(PRESETS) == set(QUANTIZERS)
    assert set(WEIGHTS.names()) <= chosen


VARIANTS = {
    "vit": ["model=vit", "model.depth=1"],
    "cnn": ["model=cnn"],
    "cnn binary": ["model=cnn", "quantizer=binary"],
    "torchvision": ["model=mobilenet_v3_small", "trainer.epochs=1", "trainer.train_batches=1"],
    "bf16": ["trainer.precision=bf16-true"],
    "bf16 mixed": ["trainer.precision=bf16-mixed", "model=vit", "model.depth=1"],
    "averaged": ["callbacks.ema_decay=0.5"],
    "channel": ["quantizer.weights.granularity=channel", "packing=pack2"],
    "int8 embeddings": ["packing.embeddings=int8", "model=vit", "model.depth=1"],
    "int8 embeddings without quantizer": ["packing.embeddings=int8", "quantizer=full"],
    "groups": [
        "quantizer.weights.granularity=group",
        "quantizer.weights.group_size=16",
        "quantizer.norm=rms",
    ],
    "three bits": ["quantizer=lsq", "quantizer.weights.bits=3", "quantizer.weights.granularity=tensor"],
    "by layer": ["quantizer.layers=[{match: 'layers.0', weights: {name: int, bits: 8}, activations: int4}]"],
    "by stage": ["quantizer.activations=int4", "quantizer.stages=[{until: 0.5, activations: int8}]"],
    "sparse": ["quantizer.sparsifier={name: top_k, keep: 0.5}"],
    "clipped": ["quantizer=binary", "quantizer.estimator={name: clipped, at: 0.1}"],
    "floats": ["quantizer.activations=none", "packing=pack8"],
    "phased in learned": [
        "quantizer=lsq_plus",
        "quantizer.lambda_schedule={name: sigmoid, start: 0.2, end: 1.0}",
    ],
    "without latents": ["quantizer=dqt", "optimizer=dqt", "quantizer.weights.bits=8"],
    "muon in bf16": ["optimizer=muon", "trainer.precision=bf16-true", "optimizer.kahan=true"],
    "gradients": ["quantizer.gradients={name: int, bits: 8, over: tensor}", "quantizer.norm=rms"],
    "phased in": ["quantizer.lambda_schedule={name: sigmoid, start: 0.2, end: 1.0}"],
}
FAST = (
    "cnn",
    "bf16",
    "averaged",
    "int8 embeddings",
    "groups",
    "by layer",
    "by stage",
    "without latents",
    "phased in",
)


@pytest.mark.parametrize("variant", others_slow(VARIANTS, FAST))
def test_so_it_is_for_other_models_and_settings(variant: str, train: Any, tiny: Any) -> None:
    assert_the_packed_file_is_what_was_trained(train(*VARIANTS[variant], base=tiny))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")  # torch.compile
def test_so_it_is_for_a_compiled_model(train: Any, tiny: Any) -> None:
    words = ["model=vit", "model.depth=1", "trainer.compile=true"]
    assert_the_packed_file_is_what_was_trained(train(*words, base=tiny))


# which weights count


def test_the_best_validation_is_what_is_tested(train: Any) -> None:
    words = ["trainer.epochs=4"]
    worst_wins = "callbacks.checkpoint.mode=max"  # so that the last is not the best
    outcome = train(*words, worst_wins, "callbacks.checkpoint.monitor=val/loss")
    losses = {int(r["step"]): float(r["value"]) for r in rows(outcome.folder) if r["metric"] == "val/loss"}
    best = max(losses, key=lambda step: losses[step])
    assert best < max(losses)
    assert load_checkpoint(outcome.folder / "checkpoints" / BEST)["global_step"] == best
    assert outcome.result["weights"] == "best validation"
    assert outcome.result["metrics"]["val/loss"] == losses[best]
    last = train(*words)
    assert last.result["weights"] == "last step"
    assert last.result["metrics"]["val/loss"] == losses[max(losses)]
    assert last.result["metrics"]["test/loss"] != outcome.result["metrics"]["test/loss"]


def test_the_better_end_of_a_metric_need_not_be_named(train: Any) -> None:
    named, words = ["callbacks.checkpoint.mode=min"], ["trainer.epochs=3", "optimizer.lr=0.3"]
    results = [
        train(*words, *mode, "callbacks.checkpoint.monitor=val/loss").result["metrics"]
        for mode in ([], named)
    ]
    assert results[0] == results[1]


def test_gradients_are_clipped_in_mixed_precision_too(train: Any) -> None:
    """By a fused optimizer, for which Lightning refuses to."""
    outcome = train("trainer.precision=bf16-mixed", "trainer.gradient_clip=0.001")
    assert outcome.result["reason"] is None
    assert outcome.result["metrics"] != train("trainer.precision=bf16-mixed").result["metrics"]


def test_early_stopping_ends_the_run(train: Any) -> None:
    outcome = train(
        "trainer.epochs=50", "callbacks.early_stopping={monitor: val/loss, mode: max, patience: 2}"
    )
    assert outcome.status == "finished"
    losses = [float(row["value"]) for row in rows(outcome.folder) if row["metric"] == "val/loss"]
    assert 3 <= len(losses) < 50
    assert max(losses[-2:]) <= max(losses[:-2])


def test_averaged_weights_are_what_is_packed(train: Any) -> None:
    outcome = train("callbacks.ema_decay=0.9", "quantizer=full")
    checkpoint = load_checkpoint(outcome.folder / "checkpoints" / LAST)
    averaged, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    kernel, _, _ = choose_kernel("reference", "cpu")
    packed = load_packed(outcome.folder / "packed.safetensors", kernel)[0].state_dict()
    assert torch.equal(packed["head.weight"], averaged["model.head.weight"])
    assert not torch.equal(averaged["model.head.weight"], current["model.head.weight"])


def test_a_run_ends_after_max_steps_and_validates(train: Any) -> None:
    outcome = train("trainer.max_steps=6")
    assert outcome.result["steps"] == 6
    assert [row["step"] for row in rows(outcome.folder) if row["metric"] == "val/loss"] == ["4", "6"]


def test_without_validation_data_a_run_ends_all_the_same(train: Any) -> None:
    outcome = train("data.val_size=0")
    assert outcome.status == "finished"
    assert not [name for name in outcome.result["metrics"] if name.startswith("val/")]
