"""What six short recipes come to over ten seeds. `python -m tests.support.bands` measures it.

A run that falls out of its band has other numbers than this code had when they were measured.
"""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bitexp.common.console import Report, write
from bitexp.common.files import write_json
from bitexp.config.compose import composed
from bitexp.run.road import run
from bitexp.track.provenance import processor, version

FILE = Path(__file__).parents[1] / "files" / "bands.json"
SEEDS = range(10)
METRIC = "test/loss"
SHORT = ("data=digits", "logger=csv", "callbacks.progress=none", "trainer.epochs=3", "data.val_size=0.1")
RECIPES = {
    "full precision": ("model=mlp", "quantizer=full", "optimizer.lr=0.003"),
    "ternary by the mean": ("model=mlp", "quantizer=ternary_mean", "optimizer.lr=0.01"),
    "binary in two stages": ("model=mlp", "quantizer=binary", "+recipe=two_stage", "optimizer.lr=0.01"),
    "bf16 latents, rounded at random": (
        "model=mlp",
        "quantizer=ternary_median",
        "+recipe=bf16_latents_stochastic",
        "optimizer.lr=0.01",
    ),
    "a transformer by Muon": (
        "model=vit",
        "model.depth=1",
        "quantizer=ternary_median",
        "optimizer=muon",
        "optimizer.lr=0.01",
    ),
    "convolutions with learned scales": (
        "model=cnn",
        "model.widths=[8,16]",
        "model.pool=[2,2]",
        "quantizer=lsq",
        "optimizer.lr=0.01",
    ),
}


def measured(name: str, seed: int) -> float:
    """What one recipe comes to with one seed. Raises `RuntimeError` where its run does not finish."""
    words = [*SHORT, *RECIPES[name], f"seed={seed}"]
    outcome = run(composed(words), words, Report(quiet=True))
    if outcome.status != "finished":
        raise RuntimeError(f"{name}, seed {seed}: {outcome.result.get('reason')}")
    return float(outcome.result["metrics"][METRIC])


def main() -> None:
    """Measures all of them, and writes the file."""
    import os

    recipes: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        os.environ["BITEXP_OUTPUTS"] = place
        for name in RECIPES:
            recipes[name] = [measured(name, seed) for seed in SEEDS]
            write(f"{name}: {json.dumps(recipes[name])}\n")
    facts = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "torch": version("torch"),
    }
    write_json(FILE, {**facts, "metric": METRIC, "recipes": recipes})


if __name__ == "__main__":
    main()
