"""How each command of the READMEs is made short, by its word; those that train get an overlay."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from bitexp.cli.commands import COMMANDS
from tests.support.exports import exported_model
from tests.support.processes import Command, Ended

TINY: tuple[str, ...] = (
    "logger=csv",
    "trainer.epochs=1",
    "trainer.train_batches=1",
    "trainer.eval_batches=1",
)
TINY += ("data.batch_size=4", "data.eval_batch_size=4")
ATTACK = ("--batches=1", "--batch=8", "--flips=2", "--samples=8", "--seeds=1", "--trials=2")
STACK = ("--blocks", "2", "--rank", "1", "--samples", "2")
DELTA = ("--steps", "2", "--samples", "4")
SHALLOW = "model.depth=1"


@dataclass
class Typed:
    """A command as a README has it, and what a test runs it with."""

    line: str
    command: Command
    made: Callable[..., Path]
    """Gives the outputs of a short run, which is made once for all."""
    outputs: Path
    folder: Path
    patch: pytest.MonkeyPatch

    def __post_init__(self) -> None:
        words = shlex.split(self.line)[3:]
        self.word = words.pop(0) if words[0] in COMMANDS else None
        self.words = words

    def has_run(self, experiment: str, *words: str) -> None:
        """Outputs hold a short run of an experiment."""
        shutil.copytree(self.made(f"+experiment={experiment}", *words), self.outputs)

    def has_two_runs(self) -> None:
        """Outputs hold two seeds of the digits ViT."""
        shutil.copytree(self.made("-m", "+experiment=vit_ternary", "seed=0,1", SHALLOW), self.outputs)

    def named(self, place: int = 0) -> None:
        """The folder of runs that stands at this place lies in the outputs of the test."""
        self.words[place] = str(self.outputs / Path(self.words[place]).name)

    def ends(self, *more: str) -> Ended:
        """Runs it with more words."""
        return self.command(str(self.word), *self.words, *more)


def ends_well(typed: Typed) -> None:
    """Runs a command, made short, and checks what it says."""
    kinds = {
        "bench": bench, "generate": generate, "import": import_, "attack": attack, "stack": form,
        "delta": form, "export": engines, "evaluate": engines, "report": report, "ptq": ptq,
        "allocate": allocate, "claims": claims, "reproduce": reproduce, "dashboard": dashboard, None: trained,
    }  # fmt: skip
    ended = kinds[typed.word](typed) if typed.word in kinds else typed.ends()
    assert ended is None or ended.code == 0, ended


def bench(typed: Typed) -> Ended | None:
    what = typed.words[0] if typed.words else ""
    if what == "gpu" and not torch.cuda.is_available():
        ended = typed.ends()
        assert ended.code == 2
        assert "needs a GPU" in ended.err
        return None
    if what == "sweep":
        tiny = ("--cells", "1", "--launchers", "basic", "--", "trainer.max_steps=1", "logger=csv")
        return typed.command("bench", "sweep", *tiny)
    if what == "tables":
        typed.has_run("lm_full", SHALLOW)
        typed.named(1)
        return typed.ends("--samples", "2")
    if what == "engines":
        typed.has_run("lm_portable", SHALLOW)
        typed.named(1)
    small = {
        "layers": ("--shapes", "64x256"),
        "models": ("--models", "vit"),
        "decode": ("--models", "decoder", "--quantizer", "ternary_mean", "--tokens", "4"),
        "engines": ("--tokens", "4"),
    }
    return typed.ends("--rounds", "1", *small.get(what, ("--batch", "2")))


def generate(typed: Typed) -> Ended:
    source = typed.words[0]
    if source == "outputs/lm_full":
        typed.has_run("lm_full", SHALLOW)
        typed.named()
        typed.command("stack", typed.words[0], *STACK)
        typed.command("delta", typed.words[0], typed.words[0], *DELTA)
        (delta,) = typed.outputs.glob("lm_full/*/delta.safetensors")
        typed.words = [str(delta) if word.endswith("delta.safetensors") else word for word in typed.words]
    elif source == "model.safetensors":
        (packed,) = typed.made("+experiment=lm_portable", SHALLOW).glob("lm_portable/*/packed.safetensors")
        shutil.copy(packed, "model.safetensors")
    else:
        typed.has_run("lm_ternary", SHALLOW)
        typed.named()
    ended = typed.ends("--tokens", "8")
    assert ended.out.startswith(typed.words[typed.words.index("--prompt") + 1])
    return ended


def import_(typed: Typed) -> Ended:
    exported = exported_model(typed.made("+experiment=lm_portable", SHALLOW), typed.folder, typed.command)
    typed.words[0] = exported["gguf" if ".gguf" in typed.line else "transformers"]
    ended = typed.ends()
    assert (typed.folder / "model.safetensors").exists()
    return ended


def attack(typed: Typed) -> Ended:
    typed.has_two_runs()
    typed.words[0] = str(typed.outputs / "vit_ternary")
    ended = typed.ends(*(ATTACK if typed.word == "attack" else ("--samples", "8")))
    assert "python -m bitexp report" in ended.out
    return ended


def form(typed: Typed) -> Ended:
    typed.has_run("lm_full", SHALLOW)
    run = str(typed.outputs / "lm_full")
    if typed.word == "evaluate":
        typed.command("stack", run, *STACK)
    typed.words = [run if word.startswith("outputs/") else word for word in typed.words]
    return typed.ends(*{"stack": STACK, "delta": DELTA}.get(str(typed.word), ("--samples", "2")))


def engines(typed: Typed) -> Ended:
    if "--corruptions" in typed.words:
        return attack(typed)
    if "--bytes" in typed.words:
        return form(typed)
    if "cortex-m4" in typed.words and shutil.which("qemu-system-arm") is None:
        pytest.skip("needs qemu and a compiler for ARM")
    experiment = Path(typed.words[0]).name
    small = [SHALLOW] * ("lm" in experiment) + ["data.val_size=0.1"] * ("fashion" in experiment)
    typed.has_run(experiment, *small)
    typed.named()
    ended = typed.ends(*(["--samples", "1"] if typed.word == "evaluate" else []))
    assert "gguf" in ended.out or experiment in ended.out
    return ended


def report(typed: Typed) -> Ended:
    typed.has_two_runs()
    if typed.words[0] == "diff":
        runs = sorted(path.parent for path in typed.outputs.glob("*/*/result.json"))
        ended = typed.command("report", "diff", *map(str, runs))
        assert "The same: data, code, " in ended.out
        return ended
    if typed.words[0] == "outputs":
        typed.words[0] = str(typed.outputs)
    else:
        typed.named()
    if "--watch" in typed.words:
        typed.patch.setattr("time.sleep", interrupt)
    ended = typed.ends()
    assert "2 runs, 0 of them not finished" in ended.out
    return ended


def interrupt(seconds: float) -> None:
    """Ctrl-C while nothing happens."""
    raise KeyboardInterrupt


def of_full_run(typed: Typed) -> None:
    typed.has_run("vit_ternary", "quantizer=full", SHALLOW)
    typed.words[0] = str(typed.outputs / "vit_ternary")


def ptq(typed: Typed) -> Ended:
    of_full_run(typed)
    return typed.ends(*(["calibrate.iterations=2"] if "adaround" in typed.words else []))


def allocate(typed: Typed) -> Ended:
    of_full_run(typed)
    return typed.ends("--samples", "8", "--config-dir", str(typed.folder / "my_configs"))


def claims(typed: Typed) -> Ended:
    """tests/claims makes their runs."""
    check = "check" in typed.words
    return typed.ends(*([] if check else ["--dry-run", "--known", str(typed.folder / "runs.csv")]))


def reproduce(typed: Typed) -> Ended:
    typed.has_two_runs()
    typed.words[0] = str(next(typed.outputs.glob("vit_ternary/*/result.json")).parent)
    return typed.ends("--source", "now")


def dashboard(typed: Typed) -> Ended:
    typed.words[typed.words.index("--entity") + 1] = "me"
    ended = typed.ends("--json", str(typed.folder / "workspace.json"))
    assert (typed.folder / "workspace.json").exists()
    return ended


def trained(typed: Typed) -> Ended | None:
    if "hydra/launcher=ray" in typed.words:
        pytest.importorskip("ray")
    for start in re.findall(r"start.from=outputs/(\w+)", typed.line):
        typed.has_run(start, SHALLOW)
    words = [word.replace("submitit_slurm", "submitit_local") for word in typed.words]
    ended = typed.command(*words, *overlay(typed.line, typed.words))
    if "logger.wandb.mode=online" in words:
        assert ended.code == 2
        assert "wandb login" in ended.err
        return None
    return ended


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
        short += [
            "model.widths=[4,4,4,4]" if "_cnn" in line else "model.hidden=[16]",
            "trainer.train_batches=2",
        ]
        short += ["calibrate.iterations=2"] if "calibrate=adaround" in words else []
    short += ["hydra.sweeper.n_trials=1", "trainer.validate_every=1"] if search else []
    if {"+sweeps=methods", "+sweeps=methods_tune"} & set(words):
        short += ["quantizer=binary", "tuned=false"] + ["hydra.sweeper.write_tuned=false"] * search
    if "+sweeps=lr_weight_decay" in words:
        short += ["optimizer.lr=0.01", "optimizer.weight_decay=0.0,0.1"]
    if any(word.startswith("hydra/launcher=") for word in words):  # a new interpreter for each job
        short += ["quantizer=binary", "optimizer.weight_decay=0.0"]
    return short
