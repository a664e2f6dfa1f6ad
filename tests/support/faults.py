"""Faults that are done to runs at a chosen moment, and what has to be the same after them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

import bitexp.run.fit
from bitexp.track.checkpoint_files import BEST, LAST, load_checkpoint
from tests.support.configs import SMALL, TINY

EVERY_STEP = "callbacks.checkpoint.every_steps=1"
VARIANTS = {
    "plain": (),
    "long": ("trainer.epochs=20",),
    "random": ("data.augment={crop: 1, flip: true}", "model.dropout=0.2", "task.mixup=0.4", "task.cutmix=1"),
    "accumulate": ("trainer.train_batches=7", "trainer.accumulate=2", "trainer.log_every=1"),
    "ema": ("callbacks.ema_decay=0.9", "quantizer.lambda_schedule={name: linear, start: 0.1, end: 0.9}"),
    "bf16": ("trainer.precision=bf16-true", "optimizer.stochastic_rounding=true"),
    "mixed": ("trainer.precision=bf16-mixed", "trainer.gradient_clip=0.5", "optimizer=sgd"),
    "workers": ("data.workers=2", "data.augment={crop: 1, flip: false}"),
    "best": ("callbacks.checkpoint.monitor=val/loss", "callbacks.checkpoint.mode=min", "optimizer.lr=0.3"),
    "patience": ("callbacks.early_stopping={monitor: val/loss, mode: max, patience: 1}", "trainer.epochs=9"),
    "two_stage": ("scheduler=two_stage", "trainer.max_steps=6", "quantizer=binary", "trainer.log_every=3"),
    "rarely": ("trainer.epochs=3", "trainer.validate_every=2", "trainer.max_steps=11"),
    "learned": ("quantizer=lsq", "optimizer.lr=0.01"),
    "learned_bf16": (
        "quantizer=lsq",
        "optimizer.lr=0.01",
        "trainer.precision=bf16-true",
        "optimizer.stochastic_rounding=true",
    ),
    "stages": (
        "quantizer=ternary_hadamard",
        "quantizer.stages=[{until: 0.6, activations: int8, transform: none}]",
    ),
    "offsets": (
        "quantizer=lsq_plus",
        "quantizer.gradients=dorefa",
        "trainer.precision=bf16-true",
        "optimizer.kahan=true",
    ),
    "progressive": ("quantizer=irnet", "optimizer=cage", "optimizer.silent=0.3"),
    "levels": ("quantizer=dqt", "optimizer=dqt", "optimizer.lr=0.01"),
    "methods": (  # a latent for each bit, two scales, codes that are drawn, what follows the time
        "model.hidden=[12,12,12,12]",
        "optimizer.lr=0.01",
        "quantizer.layers=[{match: layers.0, weights: bit_planes}, {match: layers.1, weights: ttq}, "
        "{match: layers.2, weights: stochastic_ternary}, {match: layers.3, weights: sherry}]",
    ),
    "text": ("model.dropout=0.1",),
    "text_continual": ("+recipe=continual_reset",),
    "text_bf16": ("+recipe=bf16_latents_stochastic", "data.workers=1"),
}
TEXT = (
    "task=language_modelling",
    "data=stdlib",
    "model=decoder",
    "model.dim=16",
    "model.depth=1",
    "data.context=16",
    "data.val_windows=20",
    "optimizer.lr=0.01",
)
RANDOM = [name for name in VARIANTS if name not in ("plain", "long")]
Undisturbed = Callable[[str], dict[str, Any]]
"""What remains of a variant of its run when nothing happens to it."""


def base(variant: str) -> tuple[str, ...]:
    """What a variant changes: the small run on digits, or a small language model."""
    return (*TINY, *TEXT) if variant.startswith("text") else SMALL


class At(pl.Callback):
    """Does something when a hook is called for the n-th time."""

    def __init__(self, hook: str, count: int, act: Callable[[], Any]) -> None:
        self.left = count
        self.act = act
        setattr(self, hook, self._called)

    def _called(self, *_: Any, **__: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self.act()


def arrange(hook: str, count: int, act: Callable[[], Any]) -> None:
    """Adds `At` to the trainer of this process, after all other callbacks."""
    build = bitexp.run.fit.build_trainer

    def build_with(
        settings: Any, callbacks: list[pl.Callback], loggers: list[Any], folder: Any
    ) -> pl.Trainer:
        return build(settings, [*callbacks, At(hook, count, act)], loggers, folder)

    bitexp.run.fit.build_trainer = build_with


def send(*signals: int) -> None:
    """Sends signals to this process."""
    for number in signals:
        os.kill(os.getpid(), number)


def at(hook: str, count: int, *signals: int) -> Callable[[], None]:
    """Arranges for signals at a hook."""
    return partial(arrange, hook, count, partial(send, *signals))


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same, tensors to the bit."""
    if isinstance(a, torch.Tensor):
        return (
            a.dtype == b.dtype
            and a.shape == b.shape
            and a.numpy(force=True).tobytes() == b.numpy(force=True).tobytes()
            if a.dtype != torch.bfloat16
            else torch.equal(a, b)
        )
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def remains(folder: Path) -> dict[str, Any]:
    """What has to be the same in two runs: weights, optimizer, packed file, metrics but for times."""
    checkpoint = load_checkpoint(folder / "checkpoints" / LAST)
    states = (
        "state_dict",
        "current_model_state",
        "averaging_state",
        "optimizer_states",
        "global_step",
        "epoch",
    )
    rows = (folder / "metrics.csv").read_text().splitlines()
    best = folder / "checkpoints" / BEST
    return {
        **{name: checkpoint.get(name) for name in states},
        "best": load_checkpoint(best)["state_dict"] if best.exists() else None,
        "packed": (folder / "packed.safetensors").read_bytes(),
        "rows": [row for row in rows if ",time/" not in row],
        "metrics": json.loads((folder / "result.json").read_text())["metrics"],
    }


def assert_same(folder: Path, expected: dict[str, Any]) -> None:
    found = remains(folder)
    assert found["rows"] == expected["rows"]
    for name, value in expected.items():
        assert same(found[name], value), name
