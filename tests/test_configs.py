"""Every YAML file composes, and what it chooses trains a batch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml

import bitexp.__main__
from bitexp.common.errors import UserError
from bitexp.config.schema import read_settings
from bitexp.kernels import KERNELS
from bitexp.quant import QUANTIZERS, WEIGHTS
from tests.support.configs import ComposeConfig
from tests.support.marks import others_slow
from tests.support.processes import InProcess
from tests.support.training import Train

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
FILES = sorted(path for path in CONF.rglob("*.yaml") if path != CONF / "config.yaml")
FILES += sorted((ROOT / "sweeps").glob("*.yaml"))
TEXT_DATA = ("stdlib", "text", "huggingface")
NO_CHOICE = ("tuning", "base", "claims")  # read by tuned=true; what presets begin with; of another command
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
FAST_MODELS = ("cnn", "decoder", "mlp", "vit")
OTHER_QUANTIZERS = tuple(name for name, quantizer in QUANTIZERS.items() if not quantizer.layers)
BUDGET = dict.fromkeys(("qat_from_full", "paretoq"), ("trainer.train_batches=2", "start.share=0.5"))
FAST_RECIPES = ("finetune", "paretoq", "self_distill", "two_stage")
FAST_SWEEPS = ("allocation", "bits", "precisions")
FAST_EXPERIMENTS = ("digits_mcu", "fashion_cnn", "lm_portable", "vit_ternary")
ALWAYS_TRAINED = ("data", "optimizer", "scheduler", "task", "calibrate")
"""What they choose trains in every run of the tests; quantizers compose in tests/quant/test_options.py."""
STUDIES = ("allocation", "methods_tune", "pareto", "tune")
EVERY_LAYER = 'quantizer.layers=[{match: "*", weights: {name: uniform_mse, bits: 4}}]'


def group(path: Path) -> str:
    return path.parent.name


def choice(path: Path) -> str:
    added = "+" if group(path) in ADDED else ""
    return f"{added}{path.parent.relative_to(CONF if CONF in path.parents else ROOT)}={path.stem}"


def names(name: str) -> list[str]:
    """The words of a group."""
    words = [path.stem for path in FILES if group(path) == name]
    assert words
    return words


def options(name: str, slow: tuple[str, ...] = ()) -> list[Any]:
    """The words of a group, as parameters of a test."""
    words = names(name)
    marks = {**dict.fromkeys(slow, pytest.mark.slow), "gpu": pytest.mark.gpu}
    return [pytest.param(word, marks=marks.get(word, ())) for word in words]


class Trains(Protocol):
    """Trains one batch, tests, freezes and packs."""

    def __call__(self, *words: str) -> None: ...


@pytest.fixture
def trains(train: Train, data_sets: Path, compose_config: ComposeConfig) -> Trains:
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
        outcome = train(*ONE_BATCH, *words, *where, base=())
        assert outcome.result["reason"] is None
        assert outcome.result["steps"] == int(compose_config(*words)["trainer"]["max_steps"] != 0)
        metrics = outcome.result["metrics"]
        assert metrics["test/loss"] == metrics["test_packed/loss"]

    return check


class Short(Protocol):
    """Overrides that leave an experiment what it is and make its model and its data small."""

    def __call__(self, experiment: str) -> tuple[str, ...]: ...


@pytest.fixture
def short(data_sets: Path, compose_config: ComposeConfig) -> Short:
    """Overrides that leave an experiment what it is and make its model and its data small."""

    def overrides(experiment: str) -> tuple[str, ...]:
        config = compose_config(f"+experiment={experiment}")
        found = {
            "model.depth=1": "depth" in config["model"],
            "data.context=16": "context" in config["data"],
            "data=text": config["data"].get("tokenizer") == "bpe",
            f"data.files=[{data_sets}/texts]": config["data"].get("tokenizer") == "bpe",
            "data.vocabulary=300": config["data"].get("tokenizer") == "bpe",
            f"data.data_dir={data_sets}": experiment.startswith("fashion"),
        }
        return tuple(word for word, fits in found.items() if fits)

    return overrides


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if group(path) not in (*NO_CHOICE, *ALWAYS_TRAINED, "quantizer")],
    ids=choice,
)
def test_every_file_composes_to_valid_settings(path: Path, compose_config: ComposeConfig) -> None:
    settings = read_settings(compose_config(choice(path)))
    assert settings.model_dump(mode="json")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_says_what_it_is_and_executes_nothing(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
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
def test_data(word: str, trains: Trains) -> None:
    if word in TEXT_DATA:
        trains(*TEXT, f"data={word}", "model.depth=1")
        return
    workers = ["data.workers=0"] if word == "image_folder" else []
    trains(f"data={word}", "model=cnn", *workers)


@pytest.mark.parametrize("word", others_slow(names("model"), FAST_MODELS))
def test_models(word: str, trains: Trains, compose_config: ComposeConfig) -> None:
    reads_text = compose_config(f"model={word}")["model"]["name"].endswith("decoder")
    further = ["quantizer=full"] if word.startswith("bitlinear") else []  # its layers quantize themselves
    trains(*(TEXT if reads_text else ["data=cifar10"]), f"model={word}", *further)


@pytest.mark.parametrize("word", options("task"))
def test_tasks(word: str, trains: Trains) -> None:
    trains(*(TEXT if word == "language_modelling" else []), f"task={word}")


@pytest.mark.parametrize("word", others_slow(names("recipe"), FAST_RECIPES))
def test_recipes(word: str, trains: Trains, train: Train) -> None:
    words = [*TEXT, "model.depth=1"]
    if word.startswith("strikes_back"):
        words = ["model=vit", "model.depth=1"]
    if word == "finetune":
        first = train(*words, *ONE_BATCH, "quantizer=full", base=())
        words += [f"start.from={first.folder}"]
    trains(*words, f"+recipe={word}", *BUDGET.get(word, ()))


# each is trained in tests/run/test_evaluate.py; these have rules for the layers of a transformer
@pytest.mark.parametrize("word", options("quantizer", OTHER_QUANTIZERS))
def test_quantizers(word: str, trains: Trains) -> None:
    trains(f"quantizer={word}", "model=vit", "model.depth=1")


@pytest.mark.parametrize("word", options("optimizer"))
@pytest.mark.parametrize("precision", others_slow(["32", "bf16-true"], ["32"]))
def test_optimizers(word: str, precision: str, trains: Trains) -> None:
    words = [f"optimizer={word}", f"trainer.precision='{precision}'"]
    if word == "dqt":
        words += ["quantizer=dqt"]
    if word in ("cage", "dqt") and precision == "bf16-true":
        with pytest.raises(UserError, match="needs fp32 weights"):
            trains(*words)
        return
    trains(*words)


@pytest.mark.parametrize("word", options("calibrate"))
def test_calibrations(word: str, trains: Trains) -> None:
    few = [] if word == "none" else ["calibrate.samples=20"]
    few += ["calibrate.iterations=2"] if word.startswith("ada") else []
    trains("model=cnn", "trainer.max_steps=0", f"calibrate={word}", *few)


@pytest.mark.parametrize("word", options("scheduler"))
def test_schedulers(word: str, trains: Trains) -> None:
    trains(f"scheduler={word}")


@pytest.mark.parametrize("word", options("kernel"))
def test_kernels(word: str, trains: Trains) -> None:
    if word != "auto" and (reason := KERNELS.get(word).unavailable("cpu")):
        pytest.skip(reason)  # triton: tests/kernels/gpu/test_run.py
    trains(f"kernel={word}")


@pytest.mark.parametrize("word", [p for p in options("trainer") if p.values != ("ddp",)])  # test_ranks.py
def test_trainers(word: str, trains: Trains) -> None:
    trains(f"trainer={word}")


@pytest.mark.parametrize("word", others_slow(names("experiment"), FAST_EXPERIMENTS))
def test_experiments(word: str, trains: Trains, short: Short) -> None:
    trains(f"+experiment={word}", *(short(word) if word == "lm_reloaded" else ()))


@pytest.mark.slow  # byte pairs of all the source of Python
def test_an_experiment_that_trains_its_own_tokenizer(trains: Trains) -> None:
    trains("+experiment=lm_reloaded", "data.context=32", "data.vocabulary=300")


def test_the_sweep_of_methods_takes_every_preset_that_there_is(
    tmp_path: Path, in_process: InProcess, outputs: Path
) -> None:
    """Also those of a folder of one's own: a new YAML is compared with all others by itself."""
    folder = tmp_path / "mine" / "quantizer"
    folder.mkdir(parents=True)
    text = (CONF / "quantizer" / "binary.yaml").read_text().replace("name: binary\n", "name: of_my_own\n", 1)
    (folder / "of_my_own.yaml").write_text(text)
    sweep = yaml.safe_load((ROOT / "sweeps" / "methods.yaml").read_text())
    assert sweep["hydra"]["sweeper"]["params"]["quantizer"] == "glob(*)"
    words = ("-m", "--config-dir", str(tmp_path / "mine"), "+sweeps=methods", "tuned=false", "seed=0")
    ended = in_process(bitexp.__main__.main, "bitexp")(*words, "quantizer=glob([full,of_my*])", *ONE_BATCH)
    assert ended.code == 0, ended.err
    assert re.findall(r"quantizer=(\w+)", ended.out) == ["full", "of_my_own"]


@pytest.mark.parametrize("experiment", others_slow(names("experiment"), ["vit_ternary"]))
@pytest.mark.parametrize("sweep", others_slow(names("sweeps"), FAST_SWEEPS))
def test_sweeps(
    experiment: str,
    sweep: str,
    short: Short,
    compose_config: ComposeConfig,
    in_process: InProcess,
) -> None:
    words = ["-m", f"+experiment={experiment}", f"+sweeps={sweep}", *ONE_BATCH, *short(experiment), "seed=0"]
    if sweep in STUDIES:
        words += ["hydra.sweeper.n_trials=1", "quantizer=binary"]
    if sweep == "allocation":
        words += ["quantizer=uniform_mse", EVERY_LAYER]
    if sweep == "bits":
        words += ["quantizer.weights.bits=1.58,8"]
    if sweep == "methods_tune":
        words += ["hydra.sweeper.write_tuned=false"]
    if sweep == "methods":
        words += ["quantizer=glob(ternary_m*)"]
    if sweep == "lr_weight_decay":
        words += ["optimizer.lr=0.01", "optimizer.weight_decay=0.1"]
    if not (CONF / "tuning" / f"{experiment}.yaml").exists():
        words += ["tuned=false"]
    ended = in_process(bitexp.__main__.main, "bitexp")(*words)
    if sweep == "regularization" and "context" in compose_config(f"+experiment={experiment}")["data"]:
        assert ended.code == 2
        assert "unknown key 'task.mixup'" in ended.err
        return
    if sweep == "doubling" and "dim" not in compose_config(f"+experiment={experiment}")["model"]:
        assert ended.code == 2
        assert "unknown key 'model.dim'" in ended.err
        return
    assert ended.code == 0, ended.out + ended.err
    if sweep in STUDIES:
        assert ": 1 finished; budget 1. " in ended.out
        return
    count = {
        "precisions": 5,
        "doubling": 4,
        "lr_weight_decay": 4,
        "methods": 2,
        "regularization": 6,
        "bits": 2,
    }[sweep]
    assert f"{count} jobs: {count} trained, 0 finished before, 0 not finished" in ended.out
