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
from tests.support.exports import exported_model
from tests.support.processes import Command
from tests.support.readmes import ROOT, Block, blocks, commands, readmes, shown_files

TINY = ("logger=csv", "trainer.epochs=1", "trainer.train_batches=1", "trainer.eval_batches=1")
TINY += ("data.batch_size=4", "data.eval_batch_size=4")
INTERPRETERS = ("hydra/launcher=joblib", "hydra/launcher=submitit_slurm", "hydra.launcher.gpus=")
CLUSTER = ("hydra/launcher=slurm", "hydra/launcher=cluster")
"""What only a cluster can run, and tests/sweep/test_slurm.py does where there is one."""
LONG = (
    "bench sweep", "bench layers", "bench models", "bench engines", "bench --model", "sweeps=lr_weight_decay",
    "sweeps=doubling", "lm_ternary +sweeps=precisions", "fashion_mlp +sweeps=precisions", "QMCSampler",
    "sweeps=bits", "sweeps=allocation", "model=resnet18", "model.dim=256", "bitexp evaluate", "--check",
    "bitexp attack", "bitexp stack", "bitexp delta", "generate outputs/lm_full", "sweeps=regularization",
)  # fmt: skip
"""Commands that do again, at more length, what tests/test_configs.py and tests/bench do in short."""
SMALL_ATTACK = ("--batches=1", "--batch=8", "--flips=2", "--samples=8", "--seeds=1", "--trials=2")
SMALL_STACK = ("--blocks", "2", "--rank", "1", "--samples", "2")
SMALL_DELTA = ("--steps", "2", "--samples", "4")
TUNE = "vit_ternary +sweeps=tune"
"""The same: of one precision it is among the others."""
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


def interrupt(seconds: float) -> None:
    """Ctrl-C while nothing happens."""
    raise KeyboardInterrupt


# commands


def starts_interpreters(line: str) -> bool:
    """Whether a command starts interpreter after interpreter; tests/sweep/test_launchers.py starts fewer."""
    return any(words in line for words in (*INTERPRETERS, *CLUSTER))


def is_slow(line: str) -> bool:
    """Whether a command waits for `make test-all`: what takes long, and those of the rooms that train."""
    takes_long = starts_interpreters(line) or line.endswith(TUNE) or any(words in line for words in LONG)
    return takes_long or (trains(line) and line not in commands(ROOT / "README.md"))


def trains(line: str) -> bool:
    """Whether a command makes runs, in the words of Hydra."""
    return shlex.split(line)[3] not in COMMANDS and not {"--help", "--cfg", "--version", "-sc"} & set(
        line.split()
    )


def waits(line: str) -> bool:
    """Whether a command that trains waits, and composes with what is in `conf`."""
    return trains(line) and is_slow(line) and not any(word in line for word in ("--config-dir", "=ray"))


@pytest.mark.parametrize("line", [c for c in commands() if waits(c)])
def test_a_command_that_waits_composes(line: str) -> None:
    words = [word for word in shlex.split(line)[3:] if word not in ("-m", "--multirun")]
    words = [word for word in words if "(" not in word and not word.startswith("start.from=")]
    first = [re.sub(r"^([^\[{'\"]+?=[^\[{,]+),.*", r"\1", word) for word in words]  # of a sweep over a key
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


SEARCHES = (
    "hydra/sweeper=optuna",
    "+sweeps=tune",
    "+sweeps=pareto",
    "+sweeps=methods_tune",
    "+sweeps=allocation",
)


def overlay(line: str, words: list[str]) -> list[str]:
    """What makes a run or sweep short."""
    if "--cfg" in words or "--help" in words:
        return []
    short = [word for word in TINY if word != "logger=csv" or "logger" not in line]
    search = any(word in words for word in SEARCHES)
    short += ["seed=0"] if "-m" in words else []
    short += ["trainer.train_batches=2", "start.share=0.5"] if "qat_from_full" in line else []
    if "start." in line or "qat_from_full" in words:
        short += ["model.depth=1", "trainer.train_batches=2"]
    short += ["data.val_size=0.1"] if "fashion" in line else []
    short += ["model.depth=1"] if "vit_ternary" in line and "model.depth" not in line else []
    if "+recipe=ptq" in words:
        short += ["model.hidden=[16]", "trainer.train_batches=2"]
        short += ["calibrate.iterations=2"] if "calibrate=adaround" in words else []
    short += ["hydra.sweeper.n_trials=1", "trainer.validate_every=1"] if search else []
    if {"+sweeps=methods", "+sweeps=methods_tune"} & set(words):
        short += ["quantizer=binary", "tuned=false"] + ["hydra.sweeper.write_tuned=false"] * search
    if "+sweeps=lr_weight_decay" in words:
        short += ["optimizer.lr=0.01", "optimizer.weight_decay=0.0,0.1"]
    if any(word.startswith("hydra/launcher=") for word in words):  # a new interpreter for each job
        short += ["quantizer=binary", "optimizer.weight_decay=0.0"]
    return short


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
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITEXP_DATA", str(data_sets))
    own_images(tmp_path)
    own_text(tmp_path, data_sets)
    write_shown(tmp_path, "my_configs")
    words = shlex.split(line)[3:]
    word = words.pop(0) if words[0] in COMMANDS else None
    if words[:1] == ["gpu"] and not torch.cuda.is_available():
        ended = command("bench", *words)
        assert ended.code == 2
        assert "needs a GPU" in ended.err
        return
    if word == "bench":
        small = {
            "layers": ["--shapes", "64x256"],
            "models": ["--models", "vit"],
            "decode": ["--models", "decoder", "--quantizer", "ternary_mean", "--tokens", "4"],
            "engines": ["--tokens", "4"],
        }.get(words[0] if words else "")
        if words[:1] == ["engines"]:
            shutil.copytree(made("+experiment=lm_portable", "model.depth=1"), outputs)
            words[1] = str(outputs / Path(words[1]).name)
        if words[:1] == ["sweep"]:
            tiny = ["--cells", "1", "--launchers", "basic", "--", "trainer.max_steps=1", "logger=csv"]
            ended = command("bench", "sweep", *tiny)
        else:
            ended = command("bench", *words, "--rounds", "1", *(small or ["--batch", "2"]))
    elif word == "generate":
        if words[0] == "outputs/lm_full":
            shutil.copytree(made("+experiment=lm_full", "model.depth=1"), outputs)
            command("stack", str(outputs / "lm_full"), *SMALL_STACK)
            command("delta", str(outputs / "lm_full"), str(outputs / "lm_full"), *SMALL_DELTA)
            (delta,) = outputs.glob("lm_full/*/delta.safetensors")
            words = [str(delta) if word.endswith("delta.safetensors") else word for word in words]
            words[0] = str(outputs / "lm_full")
        elif words[0] == "model.safetensors":
            run = next(
                made("+experiment=lm_portable", "model.depth=1").glob("lm_portable/*/packed.safetensors")
            )
            shutil.copy(run, "model.safetensors")
        else:
            shutil.copytree(made("+experiment=lm_ternary", "model.depth=1"), outputs)
            words[0] = str(outputs / Path(words[0]).name)
        ended = command("generate", *words, "--tokens", "8")
        assert ended.out.startswith(words[words.index("--prompt") + 1])
    elif word == "import":
        exported = exported_model(made("+experiment=lm_portable", "model.depth=1"), tmp_path, command)
        ended = command("import", exported["gguf" if ".gguf" in line else "transformers"], *words[1:])
        assert (tmp_path / "model.safetensors").exists()
    elif word == "attack" or "--corruptions" in words:
        request.getfixturevalue("two_runs")
        words[0] = str(outputs / "vit_ternary")
        small = ["--samples", "8"] if word == "evaluate" else SMALL_ATTACK
        ended = command(str(word), *words, *small)
        assert "python -m bitexp report" in ended.out
    elif word in ("stack", "delta") or "--bytes" in words:
        shutil.copytree(made("+experiment=lm_full", "model.depth=1"), outputs)
        run = str(outputs / "lm_full")
        if word == "evaluate":
            command("stack", run, *SMALL_STACK)
        small = {"stack": SMALL_STACK, "delta": SMALL_DELTA}.get(str(word), ("--samples", "2"))
        ended = command(str(word), *[run if w.startswith("outputs/") else w for w in words], *small)
    elif word in ("export", "evaluate"):
        if "cortex-m4" in words and shutil.which("qemu-system-arm") is None:
            pytest.skip("needs qemu and a compiler for ARM")
        experiment = Path(words[0]).name
        short = ["model.depth=1"] * ("lm" in experiment) + ["data.val_size=0.1"] * ("fashion" in experiment)
        shutil.copytree(made(f"+experiment={experiment}", *short), outputs)
        words[0] = str(outputs / Path(words[0]).name)
        ended = command(word, *words, *(["--samples", "1"] if word == "evaluate" else []))
        assert "gguf" in ended.out or Path(words[0]).name in ended.out
    elif word == "report":
        runs = sorted(path.parent for path in request.getfixturevalue("two_runs").glob("*/*/result.json"))
        if words[0] == "diff":
            ended = command("report", "diff", *map(str, runs))
            assert "The same: data, code, " in ended.out
        else:
            words[0] = str(outputs) if words[0] == "outputs" else str(outputs / Path(words[0]).name)
            if "--watch" in words:
                monkeypatch.setattr("time.sleep", interrupt)
            ended = command("report", *words)
            assert "2 runs, 0 of them not finished" in ended.out
    elif word == "ptq":
        shutil.copytree(made("+experiment=vit_ternary", "quantizer=full", "model.depth=1"), outputs)
        words[0] = str(outputs / "vit_ternary")
        ended = command("ptq", *words, *(["calibrate.iterations=2"] if "adaround" in words else []))
    elif word == "allocate":
        shutil.copytree(made("+experiment=vit_ternary", "quantizer=full", "model.depth=1"), outputs)
        words[0] = str(outputs / "vit_ternary")
        ended = command("allocate", *words, "--samples", "8", "--config-dir", str(tmp_path / "my_configs"))
    elif word == "claims":  # tests/claims makes their runs
        short = [] if "check" in words else ["--dry-run", "--known", str(tmp_path / "runs.csv")]
        ended = command("claims", *words, *short)
    elif word == "reproduce":
        shutil.copytree(made("-m", "+experiment=vit_ternary", "seed=0,1", "model.depth=1"), outputs)
        words[0] = str(next(outputs.glob("vit_ternary/*/result.json")).parent)
        ended = command("reproduce", *words, "--source", "now")
    elif word == "dashboard":
        words[words.index("--entity") + 1] = "me"
        ended = command("dashboard", *words, "--json", str(tmp_path / "workspace.json"))
        assert (tmp_path / "workspace.json").exists()
    else:
        if "hydra/launcher=ray" in words:
            pytest.importorskip("ray")
        short = overlay(line, words)
        for start in re.findall(r"start.from=outputs/(\w+)", line):
            shutil.copytree(made(f"+experiment={start}", "model.depth=1"), outputs)
        words = [word.replace("submitit_slurm", "submitit_local") for word in words]
        ended = command(*words, *short)
        if "logger.wandb.mode=online" in words:
            assert ended.code == 2
            assert "wandb login" in ended.err
            return
    assert ended.code == 0, ended.out + ended.err


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
