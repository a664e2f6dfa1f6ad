"""Every command and every piece of code in the README runs, made short by the overlay `tiny`."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import bitexp.run.road  # noqa: F401  (children that are forked do not import it again)
from bitexp.cli.commands import COMMANDS
from tests.support.processes import Command
from tests.support.training import Train

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TINY = ("logger=csv", "trainer.epochs=1", "trainer.train_batches=1", "trainer.eval_batches=1")
TINY += ("data.batch_size=4", "data.eval_batch_size=4")
INTERPRETERS = ("hydra/launcher=joblib", "hydra/launcher=submitit_slurm", "hydra.launcher.gpus=")


def blocks(language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    """Every `python -m bitexp...` in a code block, in a table or in the text, once."""
    found = re.findall(r"^python -m bitexp[^\n#]*", "\n".join(blocks("bash")), re.MULTILINE)
    found += re.findall(r"`(python -m bitexp[^`]*)`", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
    return [c for c in dict.fromkeys(c.strip() for c in found) if c != "python -m bitexp"]


def own_images(folder: Path) -> None:
    """The user's images that the README speaks of."""
    for number in range(24):
        place = folder / "my_images" / "train" / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (10 * number, 100, 50)).save(place / f"{number}.png")


def own_text(folder: Path, data_sets: Path) -> None:
    """The user's text that the README speaks of."""
    records = 4 * (data_sets / "texts" / "train.jsonl").read_text()
    for name in ("books", "my_corpus"):
        (folder / name).mkdir()
    (folder / "books" / "one.txt").write_text(records)
    for path in ("corpus.jsonl", "my_corpus/train.jsonl"):
        (folder / path).write_text(records)


def own_experiment(folder: Path) -> None:
    """The user's own experiment."""
    place = folder / "my_configs" / "experiment"
    place.mkdir(parents=True)
    (place / "mine.yaml").write_text("# @package _global_\nname: mine\nmodel: {hidden: [16]}\n")


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


def interrupt(seconds: float) -> None:
    """Ctrl-C while nothing happens."""
    raise KeyboardInterrupt


def is_slow(line: str) -> bool:
    """Whether a command starts interpreter after interpreter; tests/sweep/test_launchers.py starts fewer."""
    return any(words in line for words in INTERPRETERS)


@pytest.mark.parametrize("line", [c for c in commands() if is_slow(c)])
def test_a_command_of_the_readme_that_starts_interpreters_composes(line: str, command: Command) -> None:
    words = shlex.split(line)[3:]
    words.remove("-m")  # does not go with --cfg
    launcher = next(word for word in words if word.startswith("hydra/launcher=")).partition("=")[2]
    ended = command(*words, "--cfg", "hydra")
    assert ended.code == 0, ended.err
    assert f"hydra/launcher: {launcher}" in ended.out


@pytest.mark.parametrize(
    "line",
    [pytest.param(c, marks=[pytest.mark.slow] * is_slow(c)) for c in commands() if "ddp" not in c],
)
def test_a_command_of_the_readme_runs(
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
    own_experiment(tmp_path)
    words = shlex.split(line)[3:]
    word = words.pop(0) if words[0] in COMMANDS else None
    if words[:1] == ["gpu"] and not torch.cuda.is_available():
        ended = command("bench", *words)
        assert ended.code == 2
        assert "needs a GPU" in ended.err
        return
    if word == "bench":
        small = {"layers": ["--shapes", "64x256"], "models": ["--models", "vit"]}.get(
            words[0] if words else ""
        )
        ended = command("bench", *words, "--rounds", "1", *(small or ["--batch", "2"]))
    elif word == "generate":
        shutil.copytree(made("+experiment=lm_ternary", "model.depth=1"), outputs)
        words[0] = str(outputs / Path(words[0]).name)
        ended = command("generate", *words, "--tokens", "8")
        assert ended.out.startswith(words[words.index("--prompt") + 1])
    elif word == "report":
        shutil.copytree(made("-m", "+experiment=vit_ternary", "seed=0,1", "model.depth=1"), outputs)
        words[0] = str(outputs) if words[0] == "outputs" else str(outputs / Path(words[0]).name)
        if "--watch" in words:
            monkeypatch.setattr("time.sleep", interrupt)
        ended = command("report", *words)
        assert "2 runs, 0 of them not finished" in ended.out
    elif word == "dashboard":
        words[words.index("--entity") + 1] = "me"
        ended = command("dashboard", *words, "--json", str(tmp_path / "workspace.json"))
        assert (tmp_path / "workspace.json").exists()
    else:
        overlay = [] if "--cfg" in words else list(TINY)
        overlay += ["seed=0"] if "-m" in words else []
        if "+sweeps=lr_weight_decay" in words:
            overlay += ["optimizer.lr=0.01", "optimizer.weight_decay=0.0,0.1"]
        overlay += ["data.val_size=0.1"] if "fashion" in line and overlay else []
        overlay += ["model.depth=1"] if "-m" in words and "+experiment=vit_ternary" in words else []
        if "hydra/sweeper=optuna" in words or {"+sweeps=tune", "+sweeps=pareto"} & set(words):
            overlay += ["hydra.sweeper.n_trials=1", "trainer.validate_every=1"]
            overlay = [
                word for word in overlay if not word.startswith("model.depth") or "model.depth" not in line
            ]
        if "hydra/launcher=ray" in words:
            pytest.importorskip("ray")
        if any(word.startswith("hydra/launcher=") for word in words):  # a new interpreter for each job
            overlay += ["quantizer=binary", "optimizer.weight_decay=0.0"]
        words = [word.replace("submitit_slurm", "submitit_local") for word in words]
        online = "logger.wandb.mode=online" in words
        ended = command(*words, *(overlay[1:] if online else overlay))
        if online:
            assert ended.code == 2
            assert "wandb login" in ended.err
            return
    assert ended.code == 0, ended.out + ended.err


def test_the_command_with_several_processes_runs(tmp_path: Path) -> None:
    (line,) = [c for c in commands() if "ddp" in c]
    words = [sys.executable, *shlex.split(line)[1:], *TINY]
    env = {**os.environ, "BITEXP_OUTPUTS": str(tmp_path), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(words, env=env, capture_output=True, text=True, timeout=280, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(list(tmp_path.glob("vit_ternary/*/result.json"))) == 1


def test_the_core_works_in_a_notebook() -> None:
    (code,) = [block for block in blocks("python") if "quantize(model" in block]
    names: dict[str, Any] = {}
    exec(code, names)
    from bitexp.quant.layers import BitLinear

    assert isinstance(names["model"][0], BitLinear)
    assert isinstance(names["model"][2], torch.nn.Linear)
    assert names["model"](torch.randn(3, 64)).shape == (3, 10)


def test_the_packed_file_is_loaded_as_shown(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(train().folder)
    (code,) = [block for block in blocks("python") if "load_packed" in block]
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["model"](torch.randn(3, 1, 8, 8)).shape == (3, 10)
    assert set(names["preprocessing"]) >= {"mean", "std", "class_names"}


def test_the_notebook_works_as_shown(
    train: Train, outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train("name=vit_ternary", "quantizer=full")
    accuracy = train("name=vit_ternary", "seed=1").result["metrics"]["test/accuracy"]
    assert outputs == tmp_path / "outputs"
    (code,) = [block for block in blocks("python") if "bitexp.results" in block]
    names: dict[str, Any] = {}
    exec(code, names)
    assert len(names["runs"]) == len(names["table"]) == 2
    assert names["data"]["test/accuracy"].sel(precision="ternary_mean", seed=1).item() == accuracy


def test_adding_a_quantizer_is_one_class_and_one_yaml(tmp_path: Path) -> None:
    for part in ("bitexp", "conf", "sweeps", "tests"):
        shutil.copytree(ROOT / part, tmp_path / part, symlinks=True)
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    (code,) = [block for block in blocks("python") if "QUANTIZERS.register" in block]
    (text,) = blocks("yaml")
    name = yaml.safe_load(text)["name"]
    (tmp_path / "bitexp" / "quant" / "mine.py").write_text(code)
    (tmp_path / "conf" / "quantizer" / f"{name}.yaml").write_text(text)
    env = {**os.environ, "BITEXP_OUTPUTS": str(tmp_path / "runs"), "PYTHONPATH": str(tmp_path)}

    def python(*words: str) -> str:
        ended = subprocess.run(
            [sys.executable, *words], env=env, capture_output=True, text=True, timeout=280, cwd=tmp_path
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    sweep = ("+experiment=vit_ternary", "+sweeps=precisions", "seed=0", "model.depth=1", "tuned=false",
             f"quantizer=full,{name}")  # fmt: skip
    table = python("-m", "bitexp", "-m", *sweep, *TINY).rpartition("vs full")[2]
    assert name in table
    collected = python("-m", "pytest", "--collect-only", "-q", "tests/quant/test_weights.py", "-k", name)
    assert f"[{name}" in collected
