"""Every YAML file composes, and what it chooses trains a batch."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import bitexp.__main__
from bitexp.config.schema import read_settings
from bitexp.kernels import KERNELS
from bitexp.quant import QUANTIZERS, WEIGHTS

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
FILES = sorted(path for path in CONF.rglob("*.yaml") if path != CONF / "config.yaml")
FILES += sorted((ROOT / "sweeps").glob("*.yaml"))
TEXT_DATA = ("stdlib", "text", "huggingface")
NO_CHOICE = ("tuning", "base")  # read by tuned=true; what presets begin with
ADDED = ("experiment", "recipe", "sweeps")  # chosen with a +
TEXT = ("task=language_modelling", "data=stdlib", "model=decoder", "data.context=16")  # what reads text
ONE_BATCH = ("logger=csv", "callbacks.progress=none", "trainer.epochs=1", "trainer.train_batches=1")
ONE_BATCH += (
    "trainer.validate_every=1",
    "trainer.eval_batches=1",
    "data.val_size=0.1",
    "data.batch_size=8",
    "data.eval_batch_size=8",
)
SLOW_MODELS = (
    "cnn_2m", "convnext_tiny", "reloaded_64", "reloaded_128", "reloaded_256", "resnet18", "resnet50",
    "swin_t", "vit_48m", "vit_small", "vit_tiny",
)  # fmt: skip


SHRUNK = {"lm_reloaded": ["data.context=32", "data.vocabulary=300"]}
STUDIES = ("pareto", "tune")
SLOW_SWEEPS = (
    "fashion_cnn", "fashion_mlp", "fashion_vit", "lm_binary", "lm_doubling", "lm_full", "lm_median",
    "lm_reloaded",
)  # fmt: skip


def group(path: Path) -> str:
    return path.parent.name


def choice(path: Path) -> str:
    added = "+" if group(path) in ADDED else ""
    return f"{added}{path.parent.relative_to(CONF if CONF in path.parents else ROOT)}={path.stem}"


def options(name: str, slow: tuple[str, ...] = ()) -> list[Any]:
    """The words of a group, as parameters of a test."""
    words = [path.stem for path in FILES if group(path) == name]
    assert words
    marks = {**dict.fromkeys(slow, pytest.mark.slow), "gpu": pytest.mark.gpu}
    return [pytest.param(word, marks=marks.get(word, ())) for word in words]


@pytest.fixture
def trains(train: Any, data_sets: Path, compose_config: Any) -> Callable[..., None]:
    """Trains one batch, tests, freezes and packs."""

    def check(*words: str) -> None:
        data = compose_config(*words)["data"]["name"]
        places = {
            "digits": [],
            "image_folder": [f"data.data_dir={data_sets}/pictures"],
            "stdlib": [],
            "text": [f"data.files=[{data_sets}/texts]"],
            "huggingface": [f"data.path={data_sets}/texts"],
        }
        where = places.get(data, [f"data.data_dir={data_sets}"])
        outcome = train(*words, *ONE_BATCH, *where, base=())
        assert outcome.result["reason"] is None
        assert outcome.result["steps"] == 1
        metrics = outcome.result["metrics"]
        assert metrics["test/loss"] == metrics["test_packed/loss"]

    return check


@pytest.mark.parametrize("path", [p for p in FILES if group(p) not in NO_CHOICE], ids=choice)
def test_every_file_composes_to_valid_settings(path: Path, compose_config: Any) -> None:
    settings = read_settings(compose_config(choice(path)))
    assert settings.model_dump(mode="json")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_says_what_it_is_and_executes_nothing(path: Path) -> None:
    text = path.read_text()
    assert isinstance(yaml.safe_load(text), dict)
    targets = re.findall(r"_target_: (.*)", text)
    assert all(target.startswith("hydra_plugins.bitexp.") for target in targets)
    assert bool(targets) == (path.parent.parent.name == "hydra")
    if group(path) == "experiment":
        assert "hydra" not in text
        assert f"python -m bitexp +experiment={path.stem}\n" in text
        assert f"\nname: {path.stem}\n" in text
    if group(path) in ("recipe", "sweeps"):
        assert f"+{group(path)}={path.stem}\n" in text


def test_only_hydra_callbacks_are_instantiated() -> None:
    text = (CONF / "config.yaml").read_text()
    targets = re.findall(r"_target_: ([\w.]+)", text)
    assert targets
    callbacks = yaml.safe_load(text)["hydra"]["callbacks"].values()
    assert targets == [callback["_target_"] for callback in callbacks]


def test_every_quantizer_has_a_file() -> None:
    files = [path for path in FILES if group(path) == "quantizer"]
    assert [yaml.safe_load(path.read_text())["name"] for path in files] == [path.stem for path in files]
    assert {path.stem for path in files} == set(QUANTIZERS)
    chosen = {
        options.weights.name for q in QUANTIZERS.values() for options in q.variants() if options.weights
    }
    assert chosen == set(WEIGHTS.names())


@pytest.mark.parametrize("word", options("data"))
def test_data(word: str, trains: Any) -> None:
    if word in TEXT_DATA:
        trains(*TEXT, f"data={word}", "model.depth=1")
        return
    workers = ["data.workers=0"] if word == "image_folder" else []
    trains(f"data={word}", "model=cnn", *workers)


@pytest.mark.parametrize("word", options("model", SLOW_MODELS))
def test_models(word: str, trains: Any, compose_config: Any) -> None:
    reads_text = compose_config(f"model={word}")["model"]["name"] == "decoder"
    trains(*(TEXT if reads_text else ["data=cifar10"]), f"model={word}")


@pytest.mark.parametrize("word", options("task"))
def test_tasks(word: str, trains: Any) -> None:
    trains(*(TEXT if word == "language_modelling" else []), f"task={word}")


@pytest.mark.parametrize("word", options("recipe"))
def test_recipes(word: str, trains: Any) -> None:
    trains(*TEXT, f"+recipe={word}", "model.depth=1")


@pytest.mark.parametrize("word", options("quantizer"))
def test_quantizers(word: str, trains: Any) -> None:
    trains(f"quantizer={word}", "model=vit", "model.depth=1")


@pytest.mark.parametrize("word", options("optimizer"))
@pytest.mark.parametrize("precision", ["32", "bf16-true"])
def test_optimizers(word: str, precision: str, trains: Any) -> None:
    trains(f"optimizer={word}", f"trainer.precision='{precision}'")


@pytest.mark.parametrize("word", options("scheduler"))
def test_schedulers(word: str, trains: Any) -> None:
    trains(f"scheduler={word}")


@pytest.mark.parametrize("word", options("kernel"))
def test_kernels(word: str, trains: Any) -> None:
    if word != "auto" and (reason := KERNELS.get(word).unavailable("cpu")):
        pytest.skip(reason)  # triton: tests/kernels/gpu/test_run.py
    trains(f"kernel={word}")


@pytest.mark.parametrize("word", [p for p in options("trainer") if p.values != ("ddp",)])  # test_ranks.py
def test_trainers(word: str, trains: Any) -> None:
    trains(f"trainer={word}")


@pytest.mark.parametrize("word", options("experiment", ("fashion_mlp",)))
def test_experiments(word: str, trains: Any) -> None:
    trains(f"+experiment={word}", *SHRUNK.get(word, []))


@pytest.mark.parametrize("experiment", options("experiment", SLOW_SWEEPS))
@pytest.mark.parametrize("sweep", options("sweeps"))
def test_sweeps(
    experiment: str,
    sweep: str,
    data_sets: Path,
    compose_config: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["-m", f"+experiment={experiment}", f"+sweeps={sweep}", *ONE_BATCH, "seed=0"]
    words += SHRUNK.get(experiment, [])
    if sweep in STUDIES:
        words += ["hydra.sweeper.n_trials=1", "quantizer=binary"]
    if sweep == "lr_weight_decay":
        words += ["optimizer.lr=0.01", "optimizer.weight_decay=0.0,0.1"]
    if experiment.startswith("fashion"):
        words += [f"data.data_dir={data_sets}"]
    if not (CONF / "tuning" / f"{experiment}.yaml").exists():
        words += ["tuned=false"]
    monkeypatch.setattr(sys, "argv", ["bitexp", *words])
    with pytest.raises(SystemExit) as stop:
        bitexp.__main__.main()
    said, wrong = capsys.readouterr()
    if sweep == "doubling" and "dim" not in compose_config(f"+experiment={experiment}")["model"]:
        assert stop.value.code == 2
        assert "unknown key 'model.dim'" in wrong
        return
    assert stop.value.code == 0, said + wrong
    if sweep in STUDIES:
        assert ": 1 finished; budget 1. " in said
        return
    presets = len([path for path in FILES if group(path) == "quantizer"])
    count = {"precisions": presets - 2, "doubling": 4, "lr_weight_decay": 8}[sweep]
    assert f"{count} jobs: {count} trained, 0 finished before, 0 not finished" in said
