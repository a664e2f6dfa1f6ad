"""A run's folder and identity: outputs/<experiment>/<id>/, one folder for one config on one data set.

config.yaml overrides.yaml provenance.json uncommitted.diff packages.txt model.json metrics.csv train.log
checkpoints/ packed.safetensors predictions.safetensors confusion_matrix.csv wandb/ tensorboard/ MODEL_CARD.md
result.json (written last)
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bitexp.common.errors import UserError
from bitexp.common.files import create_unused, read_json, write_json, write_yaml
from bitexp.config.schema import Settings

UNIMPORTANT = (
    "name", "tuned", "rerun", "report", "logger", "quantizer.name",
    "data.data_dir", "data.download", "data.workers",
    "trainer.log_every",
    "callbacks.progress", "callbacks.checkpoint.every_steps", "callbacks.checkpoint.every_minutes",
    "callbacks.checkpoint.requeue", "callbacks.checkpoint.keep",
    "start.from", "start.run", "distill.teacher.from", "distill.teacher.run", "distill.teacher_seed",
)  # fmt: skip
"""The keys that cannot change a result, and so are no part of a run's identity.

Of what a run starts from, and of whom it learns from, the `identity` counts, wherever it lies.
"""

ADDED = {
    "quantizer.gradients": {"name": "none"},
    "quantizer.output_norm": "none",
    "optimizer.kahan": False,
    "start": {"weights": "best", "identity": None, "share": None, "missing": [], "unused": [], "changed": []},
    "distill": None,
    "calibrate": {"name": "none"},
    "model.head_dim": None, "model.qkv_bias": False, "model.qk_norm": False,
    "model.stochastic_depth": 0,
    "data.augment.rand_augment": 0,
}  # fmt: skip
"""Keys added since 2026-12, with the value that means as before: with that they are not hashed.

Options of a quantizer's parts are in rules and stages too, so that their class says it: its `later`.
"""


STATUSES = ("finished", "failed", "pruned", "stopped")
NUMBER, TEXT = (int, float, type(None)), (str, type(None))

RESULT: dict[str, Any] = {"status": str, "kind": TEXT, "reason": TEXT, "source": TEXT, "seconds": NUMBER}
"""What every result.json holds, and of which types."""

FINISHED: dict[str, Any] = {
    "metrics": dict, "headline": str, "better": str, "lr_decay_sum": NUMBER, "step_ms": NUMBER
}  # fmt: skip
"""What that of a finished run holds besides."""

KEPT = ("config.yaml", "model.json", "packed.safetensors", "predictions.safetensors")
"""The files that a finished run has, beside its tables; the last one where it classifies."""

UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
"""What the system answers where a folder cannot be written."""
FURTHER: dict[str, Any] = {"unit": TEXT, "steps": NUMBER, "ended": TEXT, "kernel": TEXT, "weights": TEXT}
"""What it may hold."""

ATTEMPT: dict[str, Any] = {
    "started": str, "data": str, "source": str, "code": dict, "git": dict, "versions": dict, "gpus": list,
    "start": dict, "teacher": dict, "ancestors": list,
    "processor": str, "python": str, "threads": int, "margin": NUMBER,
}  # fmt: skip
"""What the provenance of an attempt may hold, and of which types."""

LARGEST_NUMBER = 3.5e38
"""The numbers of a run are measured in fp32: what is beyond is none of them."""


def validation_of(metric: str) -> str:
    """The name under which a metric of the test set is measured on the validation part."""
    return metric.replace("test/", "val/")


class Busy(UserError):
    """Another process is running this very run, in `folder`."""

    def __init__(self, message: str, folder: Path) -> None:
        super().__init__(message)
        self.folder = folder


class Taken(UserError):
    """The lock of a run that is under way is no longer this process's: another may write its files by now."""

    kind = "taken"


def outputs() -> Path:
    """Where runs live: `outputs` in the current folder, or where BITEXP_OUTPUTS says."""
    return Path(os.environ.get("BITEXP_OUTPUTS") or "outputs").absolute()


def identity(config: dict[str, Any], data_fingerprint: str, code: Mapping[str, str] | None = None) -> str:
    """The id of a run: a hash of its config without the unimportant keys, of its data, and of its code.

    Args:
        code: `bitexp.track.code.Code.digests`; where it is empty the id is that of the config and the data.
    """
    value = json.loads(json.dumps(config))
    for key in UNIMPORTANT:
        *path, last = key.split(".")
        node = value
        for part in path:
            node = node.get(part) or {}
        node.pop(last, None)
    for key, as_before in ADDED.items():
        *path, last = key.split(".")
        node = value
        for part in path:
            node = node.get(part) or {}
        if last in node and node[last] == as_before:
            del node[last]
    text = json.dumps([value, data_fingerprint, *([dict(code)] if code else [])], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


class RunFolder:
    """The files of one run, and the lock that lets one process at a time write them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.csv"
        self.packed = path / "packed.safetensors"
        self.predictions = path / "predictions.safetensors"
        self.model = path / "model.json"
        self.card = path / "MODEL_CARD.md"
        self._lock = FileLock(path.parent / ".locks" / f"{path.name}.lock")
        self._held: tuple[int, int] | None = None

    @staticmethod
    def of(settings: Settings, data_fingerprint: str, code: Mapping[str, str] | None = None) -> RunFolder:
        """The folder of a run, not created yet."""
        run_id = identity(settings.model_dump(mode="json"), data_fingerprint, code)
        return RunFolder(outputs() / settings.name / run_id)

    def acquire(self, wait: bool = False) -> None:
        """Takes the lock. Raises `Busy` where a living process holds it, or waits for its end.

        Dead processes hold none.
        """
        owner_file = Path(self._lock.lock_file).with_suffix(".json")
        try:
            owner_file.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=-1 if wait else 0)
            self._held = file_identity(self._lock.lock_file)
            write_json(owner_file, {"pid": os.getpid(), "host": socket.gethostname()})
        except Timeout:
            owner = "another process"
            if isinstance(holder := read_json(owner_file), dict):
                owner = f"process {holder.get('pid')} on {holder.get('host')}"
            message = f"{self.path} is already being run by {owner}; this process leaves it alone"
            raise Busy(message, self.path) from None
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            raise UserError(
                f"{self.path.parent} cannot be written ({error.strerror}), so no run can be made there; "
                "BITEXP_OUTPUTS names another folder for runs"
            ) from error

    def check_lock(self) -> None:
        """Raises `Taken` where the lock that was acquired is there no more, or is another file."""
        if self._held is not None and file_identity(self._lock.lock_file) != self._held:
            raise Taken(
                f"the lock of {self.path} was removed while this process wrote there, so that another may do "
                "the same: this one ends and writes no more. The same command continues the run"
            )

    def release(self) -> None:
        """Gives the lock back."""
        self._held = None
        self._lock.release()

    def result(self) -> dict[str, Any] | None:
        """What result.json says, or None where there is none (or not yet, or none of ours)."""
        value = read_json(self.path / "result.json")
        return value if flaw(value) is None else None

    def attempts(self) -> list[dict[str, Any]]:
        """Provenance of every attempt at this run, the oldest first; what is of another type is left out."""
        value = read_json(self.path / "provenance.json")
        attempts = value.get("attempts") if isinstance(value, dict) else None
        return [
            {key: part for key, part in attempt.items() if isinstance(part, ATTEMPT.get(key, object))}
            for attempt in (attempts if isinstance(attempts, list) else [])
            if isinstance(attempt, dict)
        ]

    def set_aside(self) -> Path:
        """Moves the folder out of the way, for a rerun; nothing is lost."""
        place = self.path.parent / ".replaced"
        place.mkdir(exist_ok=True)
        aside = create_unused(place / f"{self.id}-{time.strftime('%Y%m%d-%H%M%S')}")
        os.replace(self.path, aside)  # which is empty
        return aside

    def created(self) -> Path:
        """The folder, which is there afterwards."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        return self.path

    def begin(self, settings: Settings, overrides: Sequence[str], attempt: dict[str, Any]) -> None:
        """Creates the folder, or opens it for another attempt; an old verdict goes."""
        self.created()
        for scrap in [*self.path.glob(".*.part"), *self.checkpoints.glob(".*.part")]:
            scrap.unlink()  # of an attempt that was killed while it wrote
        attempts = [*self.attempts(), attempt]
        (self.path / "result.json").unlink(missing_ok=True)
        write_yaml(self.path / "config.yaml", settings.model_dump(mode="json"))
        write_yaml(self.path / "overrides.yaml", list(overrides))
        write_json(self.path / "provenance.json", {"attempts": attempts})

    def finish(self, result: dict[str, Any]) -> None:
        """Writes the verdict, for a finished run with the checksums of its files. One without was killed.

        Raises:
            Taken: see `check_lock`.
        """
        self.check_lock()
        if result["status"] == "finished":
            files = [self.path / name for name in KEPT] + sorted(self.path.glob("*.csv"))
            result["files"] = {path.name: checksum(path) for path in dict.fromkeys(files) if path.is_file()}
        write_json(self.path / "result.json", result)

    def spoiled(self, result: Mapping[str, Any]) -> list[str]:
        """What a finished run promises and does not have any more, in words: a file is gone, or damaged."""
        if result["status"] != "finished":
            return []
        files = result.get("files")  # none before 2026-12
        promised = files if isinstance(files, dict) else dict.fromkeys([self.packed.name])
        words = []
        for name in map(str, promised):
            path = self.path / Path(name).name
            if not path.is_file():
                words.append(f"{name} is missing")
                continue
            try:
                if promised[name] not in (None, checksum(path)):
                    words.append(f"{name} has changed since it was written")
            except OSError as error:
                words.append(f"{name} cannot be read ({error.strerror})")
        return words


def checksum(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flaw(result: Any) -> str | None:
    """Why a value is no verdict of a run, as `result.json` holds one, or None."""
    if not isinstance(result, dict) or not isinstance(result.get("status"), str):
        return "result.json is damaged or was written by another program"
    finished = result["status"] == "finished"
    for key, kind in (RESULT | FINISHED if finished else RESULT).items():
        if key not in result:
            return f"result.json has no {key}"
        if not isinstance(result[key], kind):
            return f"result.json has a {type(result[key]).__name__} as {key}"
    for key, kind in FURTHER.items():
        if not isinstance(result.get(key), (*(kind if isinstance(kind, tuple) else (kind,)), type(None))):
            return f"result.json has a {type(result[key]).__name__} as {key}"
    if result["status"] not in STATUSES:
        return f"result.json has the status {result['status']!r}, which is none of {', '.join(STATUSES)}"
    if finished and not is_number(result["metrics"].get(result["headline"])):
        return f"result.json has no number for {result['headline']}"
    if finished and result["better"] not in ("max", "min"):
        return f"result.json has better={result['better']!r}, which is neither max nor min"
    return None


def is_number(value: Any) -> bool:
    """Whether a value of a file is a number that a run can have measured."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST_NUMBER


def file_identity(path: str) -> tuple[int, int] | None:
    """Device and inode of a file, which no other has while this one is open; None where there is none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def is_over(result: Mapping[str, Any] | None) -> bool:
    """Whether there is nothing left to try: finished or diverged; crashes and lack of memory may go well."""
    return result is not None and (result["status"] == "finished" or result["kind"] == "diverged")
