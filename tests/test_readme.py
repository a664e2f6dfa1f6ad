"""Every command, example and link of the READMEs holds; commands are made short by the overlay `tiny`."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from PIL import Image

import bitexp.run.road  # noqa: F401  children that are forked do not import it again
from bitexp.cli.commands import COMMANDS
from bitexp.config.schema import read_settings
from tests.support.configs import compose_config
from tests.support.marks import others_slow
from tests.support.processes import Command
from tests.support.readmes import ROOT, Block, blocks, commands, readmes, shown_files
from tests.support.short_commands import TINY, Typed, ends_well

INTERPRETERS = ("hydra/launcher=joblib", "hydra/launcher=submitit_slurm", "hydra.launcher.gpus=")
CLUSTER = ("hydra/launcher=slurm", "hydra/launcher=cluster")
"""What only a cluster can run, and tests/sweep/test_slurm.py does where there is one."""
LONG = (
    "bench sweep", "bench layers", "bench models", "bench engines", "bench tables", "bench --model",
    "sweeps=lr_weight_decay", "sweeps=doubling", "lm_ternary +sweeps=precisions",
    "fashion_mlp +sweeps=precisions", "QMCSampler", "sweeps=bits", "sweeps=allocation", "model=resnet18",
    "model.dim=256", "bitexp evaluate", "--check", "bitexp attack", "bitexp stack", "bitexp delta",
    "bitexp claims", "generate outputs/lm_full", "bitexp reproduce",
)  # fmt: skip
"""Commands that do again, at more length, what other tests do in short."""
EXAMPLES = [block for block in blocks("python") if block.file is None]


def own_images(folder: Path) -> None:
    """The user's images that the READMEs speak of."""
    for number in range(24):
        place = folder / "my_images" / "train" / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (10 * number, 100, 50)).save(place / f"{number}.png")


def own_text(folder: Path, data_sets: Path) -> None:
    """The user's text that the READMEs speak of."""
    records = 4 * (data_sets / "texts" / "train.jsonl").read_text()
    for name in ("books", "my_corpus"):
        (folder / name).mkdir()
    (folder / "books" / "one.txt").write_text(records)
    for path in ("corpus.jsonl", "my_corpus/train.jsonl"):
        (folder / path).write_text(records)


def write_shown(folder: Path, *tops: str) -> None:
    """The files that the READMEs show, written below a folder."""
    for path, text in ((path, text) for top in tops for path, text in shown_files(top).items()):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


@pytest.fixture(scope="module")
def made(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The outputs of a short command, which runs once for all who read them."""

    @cache
    def make(*words: str) -> Path:
        place = tmp_path_factory.mktemp("made") / "outputs"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BITEXP_OUTPUTS", str(place))
            ended = command(*words, *TINY)
        assert ended.code == 0, ended.err
        return place

    return make


@pytest.fixture
def two_runs(made: Callable[..., Path], outputs: Path) -> Path:
    """Outputs with two seeds of the digits ViT."""
    shutil.copytree(made("-m", "+experiment=vit_ternary", "seed=0,1", "model.depth=1"), outputs)
    return outputs


# commands


def starts_interpreters(line: str) -> bool:
    """Whether a command starts interpreter after interpreter; tests/sweep/test_launchers.py starts fewer."""
    return any(words in line for words in (*INTERPRETERS, *CLUSTER))


@cache
def firsts() -> set[str]:
    """The first command with each first word: most of them stand in the root README."""
    return set({shlex.split(line)[3]: line for line in reversed(commands())}.values())


def is_slow(line: str) -> bool:
    """Whether a command waits for `make test-all`: long ones, and of those that begin alike all but one."""
    takes_long = starts_interpreters(line) or any(words in line for words in LONG)
    return takes_long or line not in firsts() or (trains(line) and line not in commands(ROOT / "README.md"))


def trains(line: str) -> bool:
    """Whether a command makes runs, in the words of Hydra."""
    return shlex.split(line)[3] not in COMMANDS and not {"--help", "--cfg", "--version", "-sc"} & set(
        line.split()
    )


def waits(line: str) -> bool:
    """Whether a command that trains waits, and composes with what is in `conf`."""
    return trains(line) and is_slow(line) and not any(word in line for word in ("--config-dir", "=ray"))


WAITING = [line for line in commands() if waits(line)]


@pytest.mark.parametrize("line", others_slow(WAITING, WAITING[::2]))
def test_a_command_that_waits_composes(line: str) -> None:
    words = [word for word in shlex.split(line)[3:] if word not in ("-m", "--multirun")]
    words = [word for word in words if "(" not in word and not word.startswith("start.from=")]
    first = [re.sub(r"^([^\[{'\"]+?=(?:\[[^\]]*\]|[^\[{,]+)),.*", r"\1", word) for word in words]
    read_settings(compose_config(*first))


@pytest.mark.parametrize("line", [c for c in commands() if starts_interpreters(c)])
def test_a_command_that_starts_interpreters_composes(
    line: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_shown(tmp_path, "my_configs")
    words = shlex.split(line)[3:]
    words.remove("-m")  # does not go with --cfg
    launcher = next(word for word in words if word.startswith("hydra/launcher=")).partition("=")[2]
    ended = command(*words, "--cfg", "hydra")
    assert ended.code == 0, ended.err
    assert f"hydra/launcher: {launcher}" in ended.out


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(c, marks=[pytest.mark.slow] * is_slow(c))
        for c in commands()
        if not any(word in c for word in ("ddp", *CLUSTER))
    ],
)
def test_a_command_runs(
    line: str,
    command: Command,
    made: Callable[..., Path],
    data_sets: Path,
    tmp_path: Path,
    outputs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITEXP_DATA", str(data_sets))
    own_images(tmp_path)
    own_text(tmp_path, data_sets)
    write_shown(tmp_path, "my_configs")
    ends_well(Typed(line, command, made, outputs, tmp_path, monkeypatch))


@pytest.mark.slow
def test_the_command_with_several_processes_runs(tmp_path: Path) -> None:
    (line,) = [c for c in commands() if "ddp" in c]
    words = [sys.executable, *shlex.split(line)[1:], *TINY]
    env = {**os.environ, "BITEXP_OUTPUTS": str(tmp_path), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(words, env=env, capture_output=True, text=True, timeout=280, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(list(tmp_path.glob("vit_ternary/*/result.json"))) == 1


def test_the_other_programs_have_what_is_asked_of_them() -> None:
    text = "\n".join(readmes().values())
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([\w-]+)", text, re.MULTILINE)) <= targets
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = {word for words in re.findall(r"(?:bitexp|\.)\[([\w,]+)\]", text) for word in words.split(",")}
    assert {"cpu", "notebook"} <= asked <= set(extras)


# examples


@pytest.mark.parametrize("block", EXAMPLES, ids=str)
def test_an_example_runs(
    block: Block, two_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert two_runs == tmp_path / "outputs"
    monkeypatch.chdir(tmp_path)
    (run,) = [path for path in two_runs.glob("vit_ternary/*") if seed_of(path) == 1]
    shutil.copyfile(run / "packed.safetensors", tmp_path / "packed.safetensors")
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(block.code, str(block), "exec"), names)
    if "preprocessing" in names:
        assert names["model"](torch.randn(3, 1, 8, 8)).shape == (3, 10)
        assert set(names["preprocessing"]) >= {"mean", "std", "class_names"}
    if "runs" in names:
        assert len(names["runs"]) == 2
        assert len(names["table"]) == 1
        accuracy = json.loads((run / "result.json").read_text())["metrics"]["test/accuracy"]
        assert names["data"]["test/accuracy"].sel(precision="ternary_mean", seed=1).item() == accuracy


def seed_of(path: Path) -> int | None:
    """The seed of a finished run; None for another folder."""
    result = path / "result.json"
    return json.loads(result.read_text())["seed"] if result.exists() else None


def test_examples_use_the_public_surface_alone() -> None:
    for block in EXAMPLES:
        for module, names in re.findall(r"^from (bitexp\S*) import ([^#\n]+)", block.code, re.MULTILINE):
            public = sys.modules[module].__all__
            assert module.count(".") < 2, f"{block}: {module}"
            assert set(names.split(", ")) <= set(public), f"{block}: {module} exports {public}"


@pytest.mark.parametrize("room", ["quant", "kernels", "models", "data", "tasks", "deploy", "report"])
def test_a_room_has_what_it_exports(room: str) -> None:
    module = importlib.import_module(f"bitexp.{room}")
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        module.nonsense  # noqa: B018


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., str]:
    """Runs Python in a copy of the checkout with all that the READMEs add to it; gives what it prints."""
    for part in ("bitexp", "conf", "sweeps", "tests"):
        shutil.copytree(ROOT / part, tmp_path / part, symlinks=True)
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    write_shown(tmp_path, "bitexp", "conf")
    env = {**os.environ, "BITEXP_OUTPUTS": str(tmp_path / "runs"), "PYTHONPATH": str(tmp_path)}

    def call(*words: str) -> str:
        ended = subprocess.run(
            [sys.executable, *words], env=env, capture_output=True, text=True, timeout=280, cwd=tmp_path
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    return call


@pytest.mark.slow
def test_what_is_added_is_one_class_and_one_yaml(python: Callable[..., str], tmp_path: Path) -> None:
    quantizers = [Path(path).stem for path in shown_files("conf/quantizer")]
    assert len(quantizers) == 3
    sweep = ("+experiment=vit_ternary", "+sweeps=precisions", "seed=0", "model.depth=1", "tuned=false",
             f"quantizer=full,{','.join(quantizers)}", "+task.objectives.confidence.weight=0.1")  # fmt: skip
    table = python("-m", "bitexp", "-m", *sweep, "logger=plain", *TINY[1:]).rpartition("vs full")[2]
    assert all(name in table for name in quantizers)
    runs = [file.parent for file in tmp_path.glob("runs/vit_ternary/*/result.json")]
    assert len(runs) == 4
    for run in runs:
        metrics = json.loads((run / "result.json").read_text())["metrics"]
        assert metrics["test/accuracy"] == metrics["test_packed/accuracy"]
        assert "train/confidence" in (run / "metrics.csv").read_text()
        assert (run / "plain" / "metrics.csv").exists()


@pytest.mark.slow
def test_tests_pick_up_what_is_added(python: Callable[..., str]) -> None:
    collected = python("-m", "pytest", "--collect-only", "-q", "tests/quant/test_weights.py", "-k", "_max")
    assert "[ternary_max" in collected


def test_the_header_of_a_packed_file_is_as_shown(two_runs: Path) -> None:
    (block,) = blocks("json")
    shown = json.loads(block.code)
    with safetensors.safe_open(str(next(two_runs.glob("*/*/packed.safetensors"))), "pt") as file:
        header = json.loads(file.metadata()["bitexp"])
    assert shown.keys() == header.keys()
    assert shown["description"].keys() == header["description"].keys()
    (name,) = shown["layers"]
    assert shown["layers"] == {name: header["layers"][name]}
