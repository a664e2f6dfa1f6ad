"""A run's folder and identity: outputs/<experiment>/<id>/, one folder for one config on one data set.

config.yaml overrides.yaml provenance.json model.json metrics.csv train.log checkpoints/
packed.safetensors confusion_matrix.csv wandb/ tensorboard/ result.json (written last) MODEL_CARD.md
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bitexp.common.errors import UserError
from bitexp.common.files import create_unused, read_json, read_yaml, write_json, write_yaml
from bitexp.common.secrets import redacted
from bitexp.config.schema import Settings

UNIMPORTANT = (
    "name", "tuned", "rerun", "logger", "quantizer.name",
    "data.data_dir", "data.download", "data.workers",
    "trainer.log_every",
    "callbacks.progress", "callbacks.checkpoint.every_steps", "callbacks.checkpoint.every_minutes",
)  # fmt: skip
"""The keys that cannot change a result, and so are no part of a run's identity."""

ADDED = {
    "quantizer.gradients": {"name": "none"},
    "quantizer.output_norm": "none",
    "optimizer.kahan": False,
}
"""Keys added since 2026-12, with the value that means as before: with that they are not hashed."""


RESULT = ("status", "kind", "reason", "source", "seconds")
"""What every result.json holds."""

FINISHED = ("metrics", "headline", "better", "lr_decay_sum", "step_ms")
"""What that of a finished run holds besides."""


def validation_of(metric: str) -> str:
    """The name under which a metric of the test set is measured on the validation part."""
    return metric.replace("test/", "val/")


class Busy(UserError):
    """Another process is running this very run."""


def outputs() -> Path:
    """Where runs live: `outputs` in the current folder, or where BITEXP_OUTPUTS says."""
    return Path(os.environ.get("BITEXP_OUTPUTS") or "outputs").absolute()


def identity(config: dict[str, Any], data_fingerprint: str) -> str:
    """The id of a run: a hash of its config without the unimportant keys, and of its data."""
    value = json.loads(json.dumps(config))
    for key in UNIMPORTANT:
        *path, last = key.split(".")
        node = value
        for part in path:
            node = node.get(part) or {}
        node.pop(last, None)
    for key, as_before in ADDED.items():
        section, _, last = key.rpartition(".")
        node = value.get(section) or {}
        if last in node and node[last] == as_before:
            del node[last]
    text = json.dumps([value, data_fingerprint], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


class RunFolder:
    """The files of one run, and the lock that lets one process at a time write them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.csv"
        self.packed = path / "packed.safetensors"
        self.model = path / "model.json"
        self._lock = FileLock(path.parent / ".locks" / f"{path.name}.lock")

    @staticmethod
    def of(settings: Settings, data_fingerprint: str) -> RunFolder:
        """The folder of a run, not created yet."""
        run_id = identity(settings.model_dump(mode="json"), data_fingerprint)
        return RunFolder(outputs() / settings.name / run_id)

    def acquire(self, wait: bool = False) -> None:
        """Takes the lock. Raises `Busy` where a living process holds it, or waits for its end.

        Dead processes hold none.
        """
        Path(self._lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        owner_file = Path(self._lock.lock_file).with_suffix(".json")
        try:
            self._lock.acquire(timeout=-1 if wait else 0)
            write_json(owner_file, {"pid": os.getpid(), "host": socket.gethostname()})
        except Timeout:
            owner = "another process"
            if isinstance(holder := read_json(owner_file), dict):
                owner = f"process {holder.get('pid')} on {holder.get('host')}"
            raise Busy(f"{self.path} is already being run by {owner}; this process leaves it alone") from None

    def release(self) -> None:
        """Gives the lock back."""
        self._lock.release()

    def result(self) -> dict[str, Any] | None:
        """What result.json says, or None where there is none (or not yet, or none of ours)."""
        value = read_json(self.path / "result.json")
        if not isinstance(value, dict) or not set(RESULT) <= set(value):
            return None
        if value["status"] != "finished":
            return value
        whole = set(FINISHED) <= set(value) and isinstance(value["metrics"], dict)
        return value if whole and value["headline"] in value["metrics"] else None

    def attempts(self) -> list[dict[str, Any]]:
        """Provenance of every attempt at this run, the oldest first."""
        value = read_json(self.path / "provenance.json")
        attempts = value.get("attempts") if isinstance(value, dict) else None
        if not isinstance(attempts, list):
            return []
        return [attempt for attempt in attempts if isinstance(attempt, dict)]

    def set_aside(self) -> Path:
        """Moves the folder out of the way, for a rerun; nothing is lost."""
        place = self.path.parent / ".replaced"
        place.mkdir(exist_ok=True)
        aside = create_unused(place / f"{self.id}-{time.strftime('%Y%m%d-%H%M%S')}")
        os.replace(self.path, aside)  # which is empty
        return aside

    def begin(self, settings: Settings, overrides: Sequence[str], attempt: dict[str, Any]) -> None:
        """Creates the folder, or opens it for another attempt; an old verdict goes."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        attempts = [*self.attempts(), attempt]
        (self.path / "result.json").unlink(missing_ok=True)
        write_yaml(self.path / "config.yaml", settings.model_dump(mode="json"))
        write_yaml(self.path / "overrides.yaml", list(overrides))
        write_json(self.path / "provenance.json", {"attempts": attempts})

    def finish(self, result: dict[str, Any]) -> None:
        """Writes the verdict. A run without one was killed."""
        write_json(self.path / "result.json", result)


def is_over(result: Mapping[str, Any] | None) -> bool:
    """Whether there is nothing left to try: finished or diverged; crashes and lack of memory may go well."""
    return result is not None and (result["status"] == "finished" or result["kind"] == "diverged")


def unfinished_runs(settings: Settings) -> Iterator[RunFolder]:
    """Begun and unfinished runs of these very settings, on whatever data."""
    config = settings.model_dump(mode="json")
    for path in sorted((outputs() / settings.name).glob("*/config.yaml")):
        folder = RunFolder(path.parent)
        result = folder.result()
        if is_over(result) or not folder.attempts():
            continue
        stored = read_yaml(path)
        if isinstance(stored, dict) and identity(stored, "") == identity(redacted(config), ""):
            yield folder
