"""Where a result comes from: the command, the source, the versions and the machine."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import socket
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from bitexp.common.secrets import redacted
from bitexp.track.checkout import git_state

PACKAGE = Path(__file__).resolve().parents[1]
ROOMS = (
    "common", "config", "quant", "kernels", "models", "data", "track", "train", "tasks", "deploy", "run",
)  # fmt: skip
"""Those on the road of a run; sweeps, reports and commands change no result."""
REGISTERS = re.compile(rb"^@?[A-Z]+\.register\(", re.MULTILINE)
VERSIONS = (
    "torch", "torchvision", "triton", "pytorch-lightning", "torchmetrics", "hydra-core", "omegaconf",
    "optuna", "wandb", "scikit-learn", "numpy", "numba",
)  # fmt: skip


@cache
def source_fingerprint() -> str:
    """A hash of the source of those rooms of bitexp that make a run: of other source, another result.

    Files that register something are left out, since the ids of the runs that name it count them
    (`bitexp.track.code`): a method that is added or edited says nothing about the runs of others.
    """
    digest = hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (PACKAGE / room).rglob("*.py")):
        content = path.read_bytes()
        if not REGISTERS.search(content):
            digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + content + b"\0")
    return digest.hexdigest()[:16]


def provenance(seed: int, threads: int, data: str, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All of it as JSON values, for one attempt at a run on data with this fingerprint, and more `facts`."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "command": command_line(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "seed": seed,
        "threads": threads,
        "data": data,
        "source": source_fingerprint(),
        "git": git_state(PACKAGE),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in VERSIONS},
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "gpus": gpus,
        **(facts or {}),
    }


def command_line() -> str:
    """The command as one would type it, but for secrets."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        start = ["python", "-m", spec.name.removesuffix(".__main__")]
    else:
        script = Path(sys.argv[0])
        start = ["python", str(script)] if script.suffix == ".py" else [script.name]
    return shlex.join([*start, *redacted(sys.argv[1:])])


def command_of(overrides: Iterable[str]) -> str:
    """What makes a run again, by itself, whatever sweep it was part of: `+experiment=...` first."""
    words = sorted(overrides, key=lambda word: word[:1] != "+")
    return shlex.join(["python", "-m", "bitexp", *redacted(words)])


@cache
def version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def processor() -> str:
    """The processor's name where the system tells it, else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
