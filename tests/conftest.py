"""What all tests share: one thread, examples without deadlines, quantizers as the YAML has them, runs."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import settings
from omegaconf import OmegaConf
from PIL import Image

from bitexp.common.console import Report
from bitexp.common.files import write_json, write_yaml
from bitexp.common.torchvision import import_torchvision
from bitexp.config.schema import QuantizerChoice
from bitexp.quant import QUANTIZERS, Quantizer

if TYPE_CHECKING:
    from bitexp.run.road import Outcome

import_torchvision()

CONF = Path(__file__).parents[1] / "conf"

torch.set_num_threads(1)
settings.register_profile("bitexp", deadline=None, max_examples=40)
settings.load_profile("bitexp")


def pytest_configure(config: pytest.Config) -> None:
    """Hears Ctrl-C; hides GPUs from all tests but those for them: who has seen one cannot be forked."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started us beside it
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@functools.cache
def choice(preset: str) -> QuantizerChoice:
    """What `quantizer=PRESET` composes to."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"quantizer={preset}"])
    return QuantizerChoice.model_validate(OmegaConf.to_container(config.quantizer, resolve=True))


@pytest.fixture(scope="session")
def make_quantizer() -> Callable[..., Quantizer]:
    """Builds the quantizer of conf/quantizer/PRESET.yaml, with some of its keys changed."""

    def make(preset: str, **changes: object) -> Quantizer:
        chosen = choice(preset)
        arguments = {"name": chosen.name, **chosen.arguments, **changes}
        return QUANTIZERS.get(arguments.pop("name"))(**arguments)

    return make


TINY = (
    "logger=csv",
    "callbacks.progress=none",
    "trainer.epochs=2",
    "trainer.train_batches=4",
    "trainer.eval_batches=1",
)
SMALL = (*TINY, "model.hidden=[16]")
"""A run of the default model on digits that takes a quarter of a second."""


@pytest.fixture(autouse=True)
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs go: no test writes into the checkout."""
    folder = tmp_path / "outputs"
    monkeypatch.setenv("BITEXP_OUTPUTS", str(folder))
    monkeypatch.delenv("BITEXP_FOLLOW", raising=False)
    return folder


@pytest.fixture(autouse=True, scope="session")
def token_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tokens of text are kept for the session, not in the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITEXP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@functools.cache
def composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", list(overrides)), resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


@pytest.fixture(scope="session")
def compose_config() -> Callable[..., dict[str, Any]]:
    """The resolved config for some overrides."""
    return lambda *overrides: copy.deepcopy(composed(overrides))


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """Overrides that make any run short."""
    return TINY


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    """Overrides for a small network on digits, trained in a quarter of a second."""
    return SMALL


@pytest.fixture
def train() -> Callable[..., Outcome]:
    """Makes the small run with further overrides, in this process."""
    from bitexp.run.road import run

    def make(*overrides: str, base: Sequence[str] = SMALL, report: Report | None = None) -> Outcome:
        words = (*base, *overrides)
        return run(copy.deepcopy(composed(words)), words, report or Report(quiet=True))

    return make


@pytest.fixture(scope="session")
def data_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small data sets in the formats of the real ones."""
    root = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(0)
    for name, names, counts in (
        ("cifar-10-batches-py", "label_names", 10),
        ("cifar-100-python", "fine_label_names", 100),
    ):
        folder = root / name
        folder.mkdir()
        key = "labels" if counts == 10 else "fine_labels"
        parts = (
            [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"] if counts == 10 else ["train", "test"]
        )
        for part in parts:
            pixels = draw.integers(0, 256, (100, 3072), dtype=np.uint8)
            (folder / part).write_bytes(pickle.dumps({"data": pixels, key: [n % counts for n in range(100)]}))
        meta = folder / ("batches.meta" if counts == 10 else "meta")
        meta.write_bytes(pickle.dumps({names: [str(n) for n in range(counts)]}))
    for name in ("mnist", "fashion-mnist"):
        (root / name).mkdir()
        for part, count in (("train", 100), ("t10k", 20)):
            images = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
            labels = (np.arange(count) % 10).astype(np.uint8)
            for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
                sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
                content = bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()
                (root / name / f"{part}-{kind}-ubyte").write_bytes(content)
    words = np.array(["one", "two", "three", "four", "five", "six", "seven", "\u00e9ight"])
    documents = [" ".join(draw.choice(words, 60)) for _ in range(60)]
    (root / "texts").mkdir()
    lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
    (root / "texts" / "train.jsonl").write_text(lines)
    for number in range(60):
        path = root / "pictures" / f"class{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (70, 65, 3), dtype=np.uint8)).save(path)
    return root


@dataclass(frozen=True)
class Ended:
    """How a process ended: exit code (negative: the signal that killed it) and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def in_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Callable[..., Ended]]:
    """Makes of a program's `main` and its name a function of its words that tells how it ended."""

    def program(main: Callable[[], None], name: str) -> Callable[..., Ended]:
        def call(*words: object) -> Ended:
            monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
            capsys.readouterr()
            with pytest.raises(SystemExit) as stop:
                main()
            assert isinstance(stop.value.code, int)
            return Ended(stop.value.code, *capsys.readouterr())

        return call

    return program


class Child:
    """A function in a forked process: a real one, to be killed, that imports nothing a second time.

    Its exit code is what the function returns or exits with (0 for no number), and 70 if it raises.
    """

    def __init__(self, work: Callable[[], Any], folder: Path) -> None:
        folder.mkdir()
        self.files = (folder / "out", folder / "err")
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12, of a fork beside threads
            self.pid = os.fork()
        if self.pid == 0:
            self._run(work)

    def _run(self, work: Callable[[], Any]) -> NoReturn:
        code = 70
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for number, file in enumerate(self.files, start=1):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
            sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, "w" if n else "r") for n in range(3))
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            value = work()
            code = value if isinstance(value, int) else 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self) -> Ended:
        """Waits for its end."""
        _, status = os.waitpid(self.pid, 0)
        return Ended(os.waitstatus_to_exitcode(status), *(file.read_text() for file in self.files))


@pytest.fixture
def start(tmp_path: Path) -> Callable[[Callable[[], Any]], Child]:
    """Starts a function in a process of its own."""
    numbers = itertools.count()
    return lambda work: Child(work, tmp_path / f"child-{next(numbers)}")


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ended]:
    """`python -m bitexp WORDS...` in a process of its own; `first` runs before it, to arrange a fault."""
    import bitexp.run.road  # noqa: F401  (else every process would)

    def call(*words: str, first: Callable[[], Any] = lambda: None) -> Ended:
        def work() -> None:
            from bitexp.__main__ import main

            sys.argv = ["bitexp", *words]
            first()
            main()

        return Child(work, tmp_path_factory.mktemp("command") / "child").wait()

    return call


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """Writes the folder of a run that never was; `changes` are keys of its config with `__` for dots."""

    def write(
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
        config = copy.deepcopy(composed((f"quantizer={quantizer}",)))
        config |= {"seed": seed, "name": "made_up"}
        for key, value in changes.items():
            *parts, last = key.split("__")
            node = config
            for part in parts:
                node = node[part]
            node[last] = value
        path.mkdir(parents=True)
        body = 524_288 if quantizer.startswith("full") else 26_688
        metrics = {"test/loss": 1.0, "test/accuracy": score, "test_packed/accuracy": score}
        metrics |= {"size/body_bytes": float(body), "size/total_bytes": body + 20_000.0}
        metrics |= {"size/body_weights": 131_072.0, "size/total_weights": 136_010.0}
        metrics |= {"cost/fp32_add": 1e5, "cost/fp32_mul": 2e5, "cost/int8_add": 2e6, "cost/int8_mul": 0.0}
        metrics |= {"memory/saved_bytes": 12_492_864.0}
        metrics |= {} if validated is None else {"val/accuracy": validated}
        verdict = {"status": "finished", "kind": None, "reason": None, "source": "s", "seconds": 1.0}
        verdict |= {"metrics": metrics, "headline": "test/accuracy", "better": better, "unit": "images"}
        verdict |= {
            "lr_decay_sum": 0.125,
            "step_ms": 12.5,
            "steps": 100,
            "ended": "2026-11-25T10:01:00+00:00",
        }
        attempt = {"started": "2026-11-25T10:00:00+00:00", "data": "d", "source": "s", "threads": 1}
        attempt |= {"git": {"commit": "c0ffee" * 6, "dirty": False}, "versions": {"torch": "2.13.0"}}
        write_yaml(path / "config.yaml", config)
        write_yaml(path / "overrides.yaml", [f"quantizer={quantizer}", f"seed={seed}", *typed])
        write_json(path / "provenance.json", {"attempts": [attempt | (made or {})]})
        write_json(path / "result.json", verdict | (result or {}))
        return path

    return write


@pytest.fixture
def write_run(make_run: Callable[..., Path], outputs: Path) -> Callable[..., Path]:
    """The same in a folder of its own, below the experiment's, unless `folder` names one."""
    numbers = itertools.count()

    def write(*values: Any, folder: Path | None = None, **changes: Any) -> Path:
        place = outputs / changes.get("name", "made_up") / f"run{next(numbers)}"
        return make_run(folder or place, *values, **changes)

    return write
