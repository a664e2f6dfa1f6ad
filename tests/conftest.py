"""What all tests share: one thread, examples without deadlines, places to write to, and `tests.support`."""

from __future__ import annotations

import gc
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from bitexp.common.torchvision import import_torchvision
from tests.support import configs, processes, quantizers, run_folders, training
from tests.support.data_sets import write_data_sets

import_torchvision()
torch.set_num_threads(1)
settings.register_profile("bitexp", deadline=None, max_examples=40)
settings.register_profile("short", deadline=None, max_examples=10)
settings.load_profile("bitexp")


def pytest_configure(config: pytest.Config) -> None:
    """Hears Ctrl-C; hides GPUs from all tests but those for them: who has seen one cannot be forked."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started us beside it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and this where nohup did
    if config.option.markexpr == "not slow and not gpu":  # `make test`, which is to take five minutes
        settings.load_profile("short")
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        for hidden in (torch.cuda, torch.xpu, torch.mtia):  # each would format the stack for every seed
            hidden.manual_seed_all = lambda seed: None


def pytest_collection_finish() -> None:
    """What is imported by now stays: to look it through for garbage takes a tenth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def unmade(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Places that are no folders yet: most tests write nothing, and thousands of folders take a while."""
    root = tmp_path_factory.mktemp("unmade")
    return (root / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def outputs(request: pytest.FixtureRequest, unmade: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs go, below `tmp_path` of a test that has one: no test writes into the checkout."""
    place = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else next(unmade)
    folder: Path = place / "outputs"
    monkeypatch.setenv("BITEXP_OUTPUTS", str(folder))
    monkeypatch.delenv("BITEXP_FOLLOW", raising=False)
    return folder


@pytest.fixture(autouse=True, scope="session")
def token_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tokens of text are kept for the session, not in the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITEXP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def make_quantizer() -> quantizers.MakeQuantizer:
    """Builds the quantizer of conf/quantizer/PRESET.yaml, with some of its keys changed."""
    return quantizers.make_quantizer


@pytest.fixture(scope="session")
def compose_config() -> configs.ComposeConfig:
    """The resolved config for some overrides."""
    return configs.compose_config


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """Overrides that make any run short."""
    return configs.TINY


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    """Overrides for a small network on digits, trained in a quarter of a second."""
    return configs.SMALL


@pytest.fixture
def train() -> training.Train:
    """Makes the small run with further overrides, in this process."""
    return training.train


@pytest.fixture(scope="session")
def data_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small data sets in the formats of the real ones."""
    root = tmp_path_factory.mktemp("data")
    write_data_sets(root)
    return root


@pytest.fixture
def in_process(capsys: pytest.CaptureFixture[str]) -> processes.InProcess:
    """Makes of a program's `main` and its name a function of its words that tells how it ended."""

    def program(main: Callable[[], None], name: str) -> processes.Program:
        return lambda *words: processes.call_main(main, [name, *map(str, words)], capsys)

    return program


@pytest.fixture
def start(tmp_path: Path) -> processes.Start:
    """Starts a function in a process of its own."""
    numbers = itertools.count()
    return lambda work: processes.Child(work, tmp_path / f"child-{next(numbers)}")


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What runs and sweeps import is imported, or else every forked process would do it again."""
    import bitexp.cli.job
    import bitexp.report.terminal
    import bitexp.sweep.command  # noqa: F401

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITEXP_OUTPUTS", str(tmp_path_factory.mktemp("loaded")))
        training.train("kernel=auto")
    pytest_collection_finish()


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory, loaded: None) -> processes.Command:
    """`python -m bitexp WORDS...` in a process of its own; `first` runs before it, to arrange a fault."""

    def call(*words: str, first: Callable[[], Any] = lambda: None) -> processes.Ended:
        folder = tmp_path_factory.mktemp("command") / "child"
        return processes.Child(processes.bitexp_command(words, first), folder).wait()

    return call


@pytest.fixture(scope="session")
def make_run() -> run_folders.MakeRun:
    """Writes the folder of a run that never was; `changes` are keys of its config with `__` for dots."""
    return run_folders.write_run_folder


@pytest.fixture
def write_run(outputs: Path) -> run_folders.WriteRun:
    """The same in a folder of its own, below the experiment's, unless `folder` names one."""
    numbers = itertools.count()

    def write(*values: Any, folder: Path | None = None, **changes: Any) -> Path:
        place = outputs / changes.get("name", "made_up") / f"run{next(numbers)}"
        return run_folders.write_run_folder(folder or place, *values, **changes)

    return write
