"""Thousands of run folders that never were, for what has to read them all."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.support.run_folders import write_run_folder

PRECISIONS = ("full", "binary", "ternary_mean", "ternary_median")
ENDS = ("failed", "pruned", "stopped")


def write_many_runs(folder: Path, count: int) -> None:
    """A sweep over precision, learning rate, weight decay and seeds; every tenth run did not finish.

    Each folder is a copy of one that `write_run_folder` wrote, with other values in its files.
    """
    draw = random.Random(0)
    template = write_run_folder(folder / "template", "ternary_mean", 0, validated=0.5)
    files = {path.name: path.read_text() for path in template.iterdir()}
    result = json.loads(files["result.json"])
    for path in template.iterdir():
        path.unlink()
    template.rmdir()
    config = files["config.yaml"]
    lr = next(line for line in config.splitlines() if line.startswith("  lr:"))
    decay = next(line for line in config.splitlines() if line.startswith("  weight_decay:"))
    for number in range(count):
        seed, setting = number % 5, number // 5
        precision, setting = PRECISIONS[setting % 4], setting // 4
        values = {"lr": 1e-3 * 1.1 ** (setting % 25), "weight_decay": 1e-3 * 1.2 ** (setting // 25)}
        text = config.replace(lr, f"  lr: {values['lr']!r}").replace(
            decay, f"  weight_decay: {values['weight_decay']!r}"
        )
        text = text.replace("\nseed: 0", f"\nseed: {seed}").replace(
            "name: ternary_mean", f"name: {precision}"
        )
        typed = [
            f"quantizer={precision}",
            f"seed={seed}",
            *(f"optimizer.{k}={v!r}" for k, v in values.items()),
        ]
        score = 0.9 - 0.01 * abs(setting % 25 - 12) + 0.01 * draw.random()
        metrics = result["metrics"] | {"test/accuracy": score, "val/accuracy": score - 0.01 * draw.random()}
        verdict = result | {"metrics": metrics}
        if number % 10 == 9:
            end = ENDS[number // 10 % 3]
            verdict = {
                "status": end,
                "kind": end,
                "reason": f"{end} at step 5",
                "source": "s",
                "seconds": 1.0,
            }
        place = folder / f"{number:010x}"
        place.mkdir()
        (place / "config.yaml").write_text(text)
        (place / "overrides.yaml").write_text("".join(f"- {word}\n" for word in typed))
        (place / "provenance.json").write_text(files["provenance.json"])
        (place / "result.json").write_text(json.dumps(verdict, indent=2))
        curves = "".join(
            f"{s},0,val/accuracy,{score * s / 10}\n{s},0,train/loss,{1 / s}\n" for s in range(1, 10)
        )
        (place / "metrics.csv").write_text("step,epoch,metric,value\n" + curves)
