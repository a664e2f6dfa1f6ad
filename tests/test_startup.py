"""What is said before a job starts imports nothing heavy, so that it is said at once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import bitexp
from bitexp.cli.commands import COMMANDS

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch", "torchvision", "torchmetrics", "lightning_fabric", "pytorch_lightning", "wandb", "optuna",
    "sklearn", "scipy", "numpy", "pandas", "PIL", "transformers", "pydantic",
)  # fmt: skip
COMPOSING = ("hydra", "omegaconf")
PROGRAM = """
import atexit, json, sys
atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))
from bitexp.__main__ import main
main()
"""


@pytest.fixture
def imported() -> Callable[..., tuple[int, str, set[str]]]:
    """Exit code and output of a command in a fresh interpreter, and the packages it imported."""

    def call(*words: str) -> tuple[int, str, set[str]]:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *words], cwd=ROOT, capture_output=True, text=True
        )
        lines = done.stderr.strip().splitlines()
        return done.returncode, done.stdout, {name.partition(".")[0] for name in json.loads(lines[-1])}

    return call


def test_help(imported: Callable[..., tuple[int, str, set[str]]]) -> None:
    code, out, modules = imported("--help")
    assert code == 0
    assert not modules & set(HEAVY)
    assert out.startswith("bitexp: what does it cost to train a network with 1, 1.58 or 32 bits")
    for words in (
        *(f"python -m bitexp {word} {command.usage} " for word, command in COMMANDS.items()),
        "python -m bitexp +experiment=vit_ternary ",
        "python -m bitexp -m +experiment=vit_ternary +sweeps=precisions",
        "--cfg job",
        "quantizer: ",
        "ternary_median",
        "recipe: bf16_latents, ",
        "sweeps: allocation, bits, doubling, lr_weight_decay, methods, ",
        "BITEXP_OUTPUTS",
        "Exit codes: ",
    ):
        assert words in out or words in " ".join(out.split())  # groups are broken into lines
    assert "$" not in out.replace("$(bitexp", "")
    assert out.index("bitexp report") < out.index("bitexp +experiment")
    texts = [line for line in out.splitlines() if not re.match(r"[\w/]+: ", line)]  # those list a group
    assert max(map(len, texts)) < 110


def test_the_config_of_a_job(imported: Callable[..., tuple[int, str, set[str]]]) -> None:
    code, out, modules = imported("+experiment=vit_ternary", "--cfg", "job")
    assert code == 0
    assert not modules & set(HEAVY)
    assert "name: vit_ternary" in out
    assert "validate_every: 5" in out


@pytest.mark.parametrize("words", [["--version"], *([word, "--help"] for word in COMMANDS)])
def test_a_word_that_composes_no_config_imports_no_hydra(
    imported: Callable[..., tuple[int, str, set[str]]], words: list[str]
) -> None:
    code, out, modules = imported(*words)
    assert code == 0
    assert not modules & {*HEAVY, *COMPOSING}
    assert out.startswith(
        f"bitexp {bitexp.__version__}\n" if words == ["--version"] else ("usage: ", "What ")
    )


def test_a_report_imports_no_torch(
    imported: Callable[..., tuple[int, str, set[str]]], make_run: Callable[..., Path], outputs: Path
) -> None:
    make_run(outputs / "a" / "1")
    code, _, modules = imported("report", str(outputs))
    assert code == 0
    assert not modules & {"torch", "pytorch_lightning", *COMPOSING}


def test_a_run_imports_what_it_needs(
    imported: Callable[..., tuple[int, str, set[str]]], outputs: Path
) -> None:
    """Neither scipy, matplotlib and transformers by Lightning's torchmetrics, nor a tracker, nor a study."""
    code, _, modules = imported(
        "model=mlp", "model.hidden=[8]", "kernel=reference", "logger=csv", "trainer.epochs=1",
        "trainer.train_batches=1",
    )  # fmt: skip
    assert code == 0
    assert modules & set(HEAVY) == {
        "torch", "torchmetrics", "lightning_fabric", "pytorch_lightning", "numpy", "pydantic",
    }  # fmt: skip
    assert not modules & {"matplotlib", "numba", "sqlalchemy"}


def test_an_unknown_word(imported: Callable[..., tuple[int, str, set[str]]]) -> None:
    code, out, modules = imported("reprot")
    assert (code, out) == (2, "")
    assert not modules & {*HEAVY, *COMPOSING}


def test_a_typo(imported: Callable[..., tuple[int, str, set[str]]]) -> None:
    code, out, modules = imported("+experiment=vit_ternari")
    assert (code, out) == (2, "")
    assert not modules & set(HEAVY)


def test_a_wrong_value_costs_the_schema_but_not_torch(
    imported: Callable[..., tuple[int, str, set[str]]],
) -> None:
    code, out, modules = imported("optimizer.lr=abc")
    assert (code, out) == (2, "")
    assert modules & set(HEAVY) == {"pydantic"}


@pytest.mark.parametrize(
    "module",
    [
        "bitexp",
        "bitexp.cli.app",
        "bitexp.config.compose",
        "bitexp.common.console",
        "bitexp.common.errors",
        "bitexp.config.schema",
        "bitexp.deploy",
        "bitexp.report",
    ],
)
def test_light_modules(module: str) -> None:
    program = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules and m != 'pydantic'])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
