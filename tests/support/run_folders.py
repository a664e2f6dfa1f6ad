"""Folders of runs that never were, for what reads runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from bitexp.common.files import write_json, write_yaml
from tests.support.configs import compose_config


class MakeRun(Protocol):
    """Writes the folder of a run that never was; see `write_run_folder`."""

    def __call__(self, path: Path, *values: Any, **changes: Any) -> Path: ...


class WriteRun(Protocol):
    """The same in a folder of its own, below the experiment's, unless `folder` names one."""

    def __call__(self, *values: Any, folder: Path | None = None, **changes: Any) -> Path: ...


def changed(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A config with other values for some keys, written with `__` for dots."""
    for key, value in changes.items():
        *parts, last = key.split("__")
        node = config
        for part in parts:
            node = node[part]
        node[last] = value
    return config


def write_run_folder(
    path: Path,
    quantizer: str = "ternary_mean",
    seed: int = 0,
    score: float = 0.9,
    *,
    validated: float | None = None,
    typed: Sequence[str] = (),
    result: dict[str, Any] | None = None,
    made: dict[str, Any] | None = None,
    better: str = "max",
    **changes: Any,
) -> Path:
    """Writes the folder of a finished run and returns its path.

    `score` is its accuracy in the test and `validated` in validation; `typed` are further overrides;
    `result` and `made` change keys of result.json and of the attempt in provenance.json, `changes` keys of
    the config, with `__` for dots.
    """
    config = compose_config(f"quantizer={quantizer}") | {"seed": seed, "name": "made_up"}
    body = 524_288 if quantizer.startswith("full") else 26_688
    metrics = {
        "test/loss": 1.0,
        "test/accuracy": score,
        "test_packed/accuracy": score,
        "size/body_bytes": float(body),
        "size/total_bytes": body + 20_000.0,
        "size/body_weights": 131_072.0,
        "size/total_weights": 136_010.0,
        "cost/fp32_add": 1e5,
        "cost/fp32_mul": 2e5,
        "cost/int8_add": 2e6,
        "cost/int8_mul": 0.0,
        "memory/saved_bytes": 12_492_864.0,
    }
    if validated is not None:
        metrics["val/accuracy"] = validated
    verdict = {
        "status": "finished",
        "kind": None,
        "reason": None,
        "source": "s",
        "seconds": 1.0,
        "metrics": metrics,
        "headline": "test/accuracy",
        "better": better,
        "unit": "images",
        "lr_decay_sum": 0.125,
        "step_ms": 12.5,
        "steps": 100,
        "ended": "2026-11-25T10:01:00+00:00",
    }
    attempt = {
        "started": "2026-11-25T10:00:00+00:00",
        "data": "d",
        "source": "s",
        "threads": 1,
        "git": {"commit": "c0ffee" * 6, "dirty": False},
        "versions": {"torch": "2.13.0"},
    }
    path.mkdir(parents=True)
    write_yaml(path / "config.yaml", changed(config, changes))
    write_yaml(path / "overrides.yaml", [f"quantizer={quantizer}", f"seed={seed}", *typed])
    write_json(path / "provenance.json", {"attempts": [attempt | (made or {})]})
    write_json(path / "result.json", verdict | (result or {}))
    return path
