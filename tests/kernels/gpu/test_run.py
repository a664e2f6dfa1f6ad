"""`kernel=triton` in a run: it trains, freezes and tests, with the numbers of `kernel=reference`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bitexp.kernels import KERNELS

SHORT = ("trainer.epochs=1", "trainer.train_batches=3", "trainer.eval_batches=2")


def test_it_trains_and_freezes(
    train: Callable[..., Any], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator = "gpu" if device == "cuda" else "cpu"
    if device == "cpu":
        monkeypatch.setattr(type(KERNELS.get("triton")), "unavailable", lambda self, device: None)
    metrics = {}
    for kernel in ("triton", "reference"):
        outcome = train(f"kernel={kernel}", f"trainer.accelerator={accelerator}", *SHORT)
        assert outcome.status == "finished"
        metrics[kernel] = {k: v for k, v in outcome.result["metrics"].items() if not k.startswith("time")}
        for name in ("accuracy", "loss"):
            assert metrics[kernel][f"test_packed/{name}"] == metrics[kernel][f"test/{name}"]
    if device == "cpu":  # on a GPU gradients need not be the same twice
        assert metrics["triton"] == metrics["reference"]
