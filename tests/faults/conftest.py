"""Faults, each of them done: processes are killed, files damaged, disks filled; nothing may be lost."""

from __future__ import annotations

import shutil
import signal
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.support.configs import SMALL
from tests.support.faults import EVERY_STEP, VARIANTS, Undisturbed, at, base, remains
from tests.support.processes import Command
from tests.support.training import train as make_run


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """What remains of a variant of its run when nothing happens to it; each is made once."""

    @cache
    def make(name: str) -> dict[str, Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BITEXP_OUTPUTS", str(tmp_path_factory.mktemp("undisturbed")))
            outcome = make_run(*VARIANTS[name], base=base(name))
        assert outcome.result["reason"] is None
        return remains(outcome.folder)

    return make


@pytest.fixture(scope="session")
def killed_run(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """An outputs folder with a small run that was killed after its sixth step, with two checkpoints."""
    place = tmp_path_factory.mktemp("killed") / "outputs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITEXP_OUTPUTS", str(place))
        ended = command(*SMALL, EVERY_STEP, first=at("on_train_batch_end", 6, signal.SIGKILL))
    assert ended.code == -signal.SIGKILL
    return place


@pytest.fixture
def interrupted(killed_run: Path, outputs: Path) -> Path:
    """The folder of such a run."""
    shutil.copytree(killed_run, outputs)
    (config,) = outputs.glob("*/*/config.yaml")
    return config.parent
