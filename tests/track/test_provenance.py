"""Where a result comes from."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bitexp.track import provenance as ours


def test_an_attempt_is_plain_json() -> None:
    attempt = ours.provenance(seed=3, threads=2, data="1234")
    assert json.loads(json.dumps(attempt)) == attempt
    assert (attempt["seed"], attempt["threads"], attempt["pid"]) == (3, 2, os.getpid())
    assert attempt["data"] == "1234"
    assert attempt["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert attempt["versions"]["pytorch-lightning"]
    assert attempt["python"] == platform.python_version()
    assert len(attempt["gpus"]) == torch.cuda.device_count()
    assert attempt["processor"]


def test_the_command_as_one_would_type_it(monkeypatch: pytest.MonkeyPatch) -> None:
    main = SimpleNamespace(__spec__=SimpleNamespace(name="bitexp.__main__"))
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", ["/path/__main__.py", "-m", "seed=0,1", "model.hidden=[1, 2]"])
    assert ours.command_line() == "python -m bitexp -m seed=0,1 'model.hidden=[1, 2]'"
    main.__spec__ = None
    monkeypatch.setattr(sys, "argv", ["/usr/bin/bitexp", "seed=0"])
    assert ours.command_line() == "bitexp seed=0"


def test_the_command_of_a_run_by_itself() -> None:
    typed = ["seed=1", "model.hidden=[1, 2]", "+experiment=x", "optimizer=sgd"]
    assert ours.command_of(typed) == (
        "python -m bitexp +experiment=x seed=1 'model.hidden=[1, 2]' optimizer=sgd"
    )


def test_the_source_is_known_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = ours.source_fingerprint.__wrapped__()
    copy = tmp_path / "bitexp"
    shutil.copytree(ours.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(ours, "PACKAGE", copy)
    assert ours.source_fingerprint.__wrapped__() == here
    for file, other in CHANGES.items():
        with (copy / file).open("a") as changed:
            changed.write("\n")
        now = ours.source_fingerprint.__wrapped__()
        assert (now != here) is other, file
        here = now


CHANGES = {
    "report/tables.py": False,
    "quant/weights/ternary.py": False,
    "kernels/cpu/__init__.py": False,
    "track/trackers/wandb.py": False,
    "quant/product.py": True,
    "quant/layers.py": True,
    "common/registry.py": True,
    "train/optimizers.py": True,
}
"""Files by whether a change in them makes another version: the ids count those that register something."""


def test_a_package_that_is_not_there_has_no_version() -> None:
    assert ours.version("no-such-package-at-all") is None
