"""Bad input: exit code 2, what was wrong, what is allowed, the nearest match; nothing is made."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bitexp.__main__
from bitexp.common.errors import describe_crash
from bitexp.common.spelling import nearest, unknown_key
from bitexp.config.search_path import PluginConfigs
from bitexp.kernels import KERNELS
from tests.support.marks import others_slow


@pytest.fixture
def call(in_process: Any) -> Any:
    """`python -m bitexp WORDS...` in this process."""
    return in_process(bitexp.__main__.main, "bitexp")


HINT = "Did you mean"
LANGUAGE = "task=language_modelling data=stdlib model=decoder"
CASES = {
    # choices
    "quantizer=trenary_mean": [
        "unknown quantizer 'trenary_mean'",
        f"{HINT} 'ternary_mean'?",
        "binary, bireal",
    ],
    "+experiment=vit_ternari": ["unknown experiment 'vit_ternari'", f"{HINT} 'vit_ternary'?", "fashion_cnn"],
    "experiment=vit_ternary": ["'experiment' is not in the defaults list: write +experiment=vit_ternary"],
    "model=vti": ["unknown model 'vti'", f"{HINT} 'vit'?", "cnn"],
    "optimizer=adamm": ["unknown optimizer 'adamm'", f"{HINT} 'adam'?", "sgd"],
    "-m +sweeps=precision": ["unknown sweeps 'precision'", f"{HINT} 'precisions'?"],
    "data=digit": ["unknown data 'digit'", f"{HINT} 'digits'?", "cifar10"],
    "kernel=int9": ["unknown kernel 'int9'", f"{HINT} 'int8'?", "reference"],
    "quantizer=": ["unknown quantizer ''", "Known: "],
    "quantizer.weights=ternary": ["unknown weight quantizer 'ternary'", f"{HINT} 'ternary_mean'?"],
    "model.name=vitt": ["unknown model 'vitt'", f"{HINT} 'vit'?"],
    "optimizer.name=adamax": ["optimizer.name=adamax is unknown", f"{HINT} 'adam'?", "sgd"],
    "kernel.name=int9": ["unknown kernel 'int9'", f"{HINT} 'int8'?"],
    # keys
    "quantiser=full": ["unknown key 'quantiser'", f"{HINT} 'quantizer'?", "Known: name, seed"],
    "seeed=1": ["unknown key 'seeed'", f"{HINT} 'seed'?"],
    "+seeed=1": ["unknown key 'seeed'", f"{HINT} 'seed'?"],
    "++seeed=1": ["unknown key 'seeed'", f"{HINT} 'seed'?"],
    "trainer.epoch=3": ["unknown key 'trainer.epoch'", f"{HINT} 'trainer.epochs'?", "Known in trainer: "],
    "+trainer.epoch=3": ["unknown key 'trainer.epoch'", f"{HINT} 'trainer.epochs'?", "Known in trainer: "],
    "+model.hiden=[3]": ["unknown key 'model.hiden'", f"{HINT} 'model.hidden'?", "Known in model: "],
    "+data.batchsize=3": ["unknown key 'data.batchsize'", f"{HINT} 'data.batch_size'?"],
    "quantizer.granularity=channel": ["'quantizer.granularity' is now 'quantizer.weights.granularity'"],
    "quantizer.weights={name:lsq,bits:3}": ["which has no key 'bits'", "+quantizer.weights.bits=..."],
    "quantizer.activations=int44": ["unknown activation quantizer 'int44'", f"{HINT} 'int4'?"],
    "quantizer.layers=[{match:layers.0,weigths:binary}]": [
        "unknown key 'quantizer.layers.0.weigths'",
        f"{HINT} 'quantizer.layers.0.weights'?",
    ],
    "quantizer.layers=[{match:nothing,weights:binary}]": ["no layer of the model is called 'nothing'"],
    "quantizer.stages=[{until:0.5,activations:{name:int8,qmax:126}}]": [
        "quantizer.stages.0.activations.qmax=126 should be 127 or 128"
    ],
    "lr=0.1": ["unknown key 'lr'", f"{HINT} 'optimizer.lr'?"],
    "model=vit model.hidden=[3]": [
        "unknown key 'model.hidden'",
        "Known in model: name, full_precision, patch",
    ],
    "callbacks.early_stopping.patience=3": ["'callbacks.early_stopping' has no keys here: set it as a whole"],
    "quantizer=full quantizer.lambda_schedule.name=step": ["quantizer=full quantizes nothing"],
    "quantizer=full quantizer.stages=[{until:0.5,activations:int8}]": ["quantizer=full quantizes nothing"],
    "+seed=1": ["'seed' exists already: write seed=..., without the +"],
    "~sede": ["unknown key 'sede'", f"{HINT} 'seed'?"],
    "~seed": ["the key 'seed' is missing"],
    "~model.hidden": ["the key 'model.hidden' is missing"],
    # values
    "optimizer.lr=abc": ["optimizer.lr=abc should be a valid number"],
    "optimizer.lr=-1": ["optimizer.lr=-1 should be greater than 0"],
    "optimizer.lr=nan": ["optimizer.lr=nan should be a finite number"],
    "optimizer.lr=null": ["optimizer.lr=null should be a valid number"],
    "optimizer.betas=[0.9,1.5]": ["optimizer.betas.1=1.5 should be less than 1"],
    "data.batch_size=-3": ["data.batch_size=-3 must be at least 1"],
    "data.batch_size=3.5": ["data.batch_size=3.5 should be a valid integer"],
    "data.augment.crop=99": ["data.augment.crop=99", "to 8, the size of the image"],
    "trainer.epochs=0": ["trainer.epochs=0 should be greater than or equal to 1"],
    "trainer.devices=all": ["trainer.devices=all should be a valid integer or should be 'auto'"],
    "trainer.precision=16": ["trainer.precision=16 should be '32', 'bf16-mixed' or 'bf16-true'"],
    "model=vit model.heads=5": ["model.heads=5 does not divide dim=64; choose one of 1, 2, 4, 8"],
    "model=vit model.patch=3": ["model.patch=3 does not divide the 8x8 image; choose one of 1, 2, 4, 8"],
    "model.hidden=[]": ["model.hidden is empty", "hidden=[64]"],
    "model.hidden=5": ["model.hidden=5 should be a valid list"],
    "quantizer.exclude=[haed]": ["no layer of the model is called 'haed'", f"{HINT} 'head'?"],
    "quantizer.norm=batch": ["quantizer.norm=batch should be 'none', 'rms' or 'layer'"],
    "quantizer.weights.granularity=group": ["granularity=group and group_size=None do not fit together"],
    "seed=-1": ["seed=-1 should be greater than or equal to 0"],
    "seed=1.5": ["seed=1.5 should be a valid integer"],
    "name=../x": ["name=../x should be letters, digits"],
    "packing=pack1": ["packing.layout=pack1: the 3 codes -1..1 do not fit", "packing.layout=auto"],
    "packing.layout=pack1": ["packing.layout=pack1: the 3 codes -1..1 do not fit", "packing.layout=auto"],
    "packing=pack6": ["packing=pack6 should be 'auto', 'pack1'"],
    "packing.embeddings=int4": ["packing.embeddings=int4 should be 'float' or 'int8'"],
    "quantizer.lambda_schedule.name=cosine": ["should be 'constant', 'linear', 'sigmoid' or 'step'"],
    "quantizer.lambda_schedule=linear": ["quantizer.lambda_schedule=linear should be a section of keys"],
    "quantizer.lambda_schedule.start=0.5": ["quantizer.lambda_schedule.start=0.5 is larger than its end=0.0"],
    # combinations
    "optimizer.stochastic_rounding=true": ["there are none", "trainer.precision=bf16-true"],
    "callbacks.checkpoint.monitor=val/acc": ["is not measured", f"{HINT} 'val/accuracy'?", "val/loss"],
    "callbacks.early_stopping={monitor:val/loss,patience:1} trainer.validate_every=99": [
        "is never measured",
        "validate_every",
    ],
    "callbacks.checkpoint.monitor=val/loss data.val_size=0": ["needs validation data", "data.val_size=0.1"],
    "tuned=true optimizer.lr=0.1": ["tuned=true sets what optimizer.lr=0.1 sets"],
    "tuned=true": ["tuned=true needs a file tuning/first_steps.yaml", "tuned=false"],
    "data.data_dir=x": ["data=digits is part of scikit-learn", "data.data_dir=null"],
    "quantizer=full +recipe=continual": ["quantizer=full quantizes nothing", "choose another quantizer"],
    "quantizer.lambda_schedule.reset_optimizer=true": ["with name=constant it begins at once"],
    "+recipe=continual_reset quantizer.lambda_schedule.end=0.0": ["would forget nothing"],
    # data, model and task
    "data=stdlib": [
        "model=mlp and data=stdlib cannot be combined: the model needs shape and classes, but these data "
        "provide vocabulary and context",
        "task=image_classification and data=stdlib cannot be combined",
    ],
    "model=decoder": ["model=decoder and data=digits cannot be combined: the model needs vocabulary and"],
    "task=language_modelling": ["the task needs vocabulary, but these data provide shape and classes"],
    f"{LANGUAGE} data=text": ["data=text needs the files of your text", "data=stdlib is embedded"],
    f"{LANGUAGE} data=text data.files=[nowhere/*.txt]": ["data.files: there is no file 'nowhere/*.txt'"],
    f"{LANGUAGE} data=huggingface": ["data=huggingface needs the name of a data set"],
    f"{LANGUAGE} data.tokenizer=bpe": ["data.vocabulary=None does not go with tokenizer=bpe"],
    f"{LANGUAGE} data.vocabulary=300": ["data.vocabulary=300 does not go with tokenizer=bytes"],
    f"{LANGUAGE} data.tokenizer=bite": ["the tokenizer bite cannot be read", f"{HINT} 'bytes'?"],
    f"{LANGUAGE} data.context=2000000": ["the val part of Python standard library", "a smaller data.context"],
    f"{LANGUAGE} data.test_size=0.0": ["the test part of Python standard library", "is empty"],
    f"{LANGUAGE} data.fields=x": ["unknown key 'data.fields'"],
    f"{LANGUAGE} model.kv_heads=3": ["model.kv_heads=3 does not divide heads=2; choose one of 1, 2"],
    f"{LANGUAGE} model.activation=gelu": ["model.activation=gelu should be 'silu' or 'relu2'"],
    # what cannot be read
    "model.hidden=[3": ["'model.hidden=[3' cannot be read", "quote what the shell"],
    "seed=0 foo": ["'foo' cannot be read: missing EQUAL", "Write key=value"],
    "=3": ["must be a string or a list"],
    "data.limit=${nowhere}": ["data.limit: Interpolation key 'nowhere' not found"],
    "seed=0,1": ["Ambiguous value", "add --multirun"],
    "--run --multirun": ["Only one of --run, --multirun"],
}


@pytest.mark.parametrize("typed", others_slow(CASES, list(CASES)[::3]))
def test_what_was_wrong_is_told(typed: str, call: Any, outputs: Path) -> None:
    said = call(*typed.split())
    assert said.code == 2
    assert said.err.startswith("bitexp: ")
    for fragment in CASES[typed]:
        assert fragment in said.err
    assert "Traceback" not in said.err
    assert "Error executing" not in said.err
    assert said.out == ""
    assert not list(outputs.glob("*/*/config.yaml"))
    assert not list(outputs.glob("*/.locks"))


def test_an_unknown_flag_is_told(call: Any) -> None:
    said = call("--mutlirun")
    assert said.code == 2
    assert "unrecognized arguments: --mutlirun" in said.err
    assert "--multirun" in said.err


def test_all_that_is_wrong_is_told_at_once(call: Any, outputs: Path) -> None:
    said = call("optimizer.lr=-1", "seed=x", "trainer.epochs=0", "+foo=1", "~packing", "callbacks.progress=3")
    assert said.code == 2
    for subject in (
        "optimizer.lr=-1 should",
        "seed=x should",
        "trainer.epochs=0 should",
        "callbacks.progress=3",
    ):
        assert subject in said.err
    assert "unknown key 'foo'" in said.err
    assert "the key 'packing' is missing" in said.err
    assert len(said.err.strip().splitlines()) == 6


def test_so_is_what_only_the_code_can_tell(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said = call(
        "quantizer.weights.granularity=x", "quantizer.activations.qmax=1", "+quantizer.weights.foo=1",
        "model.hidden=[-1]", "kernel.name=z",
        "optimizer.stochastic_rounding=true",
    )  # fmt: skip
    assert said.code == 2
    for subject in (
        "quantizer.weights.granularity=x should",
        "quantizer.activations.qmax=1 should",
        "unknown key 'quantizer.weights.foo'",
        "model.hidden=[-1] must hold",
        "unknown kernel 'z'",
        "optimizer.stochastic_rounding=true rounds",
    ):
        assert subject in said.err


def test_a_kernel_that_cannot_run_says_why(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = type(KERNELS.get("int8"))
    monkeypatch.setattr(kernel, "unavailable", lambda self, device: "the moon is in the wrong phase")
    said = call("kernel=int8")
    assert said.code == 2
    assert "kernel=int8 cannot run here: the moon is in the wrong phase" in said.err


def test_a_gpu_that_is_not_there_is_told(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    said = call("trainer=gpu")
    assert said.code == 2
    assert "torch finds no GPU here; use trainer=cpu" in said.err


def test_wandb_online_without_a_key_is_told_and_nothing_asked(
    call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outputs: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "NETRC", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdin", None)
    said = call("logger.wandb.mode=online")
    assert said.code == 2
    assert "logger.wandb.mode=online needs a wandb key" in said.err
    assert "logger.wandb.mode=offline" in said.err
    assert not outputs.exists()


def test_a_sweep_with_an_unknown_word_starts_no_job(call: Any, outputs: Path) -> None:
    said = call("-m", "seed=0,1", "quantizer=full,trenary")
    assert said.code == 2
    assert "unknown quantizer 'trenary'" in said.err
    assert not list(outputs.glob("*/*/config.yaml"))
    assert not list(outputs.glob("*/sweeps/*/jobs"))


def test_a_broken_yaml_file_is_told(call: Any, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "broken.yaml").write_text("a: [1\nb: 2\n")
    said = call("--config-dir", str(tmp_path), "+experiment=broken")
    assert said.code == 2
    assert "broken.yaml" in said.err
    assert "Traceback" not in said.err


def test_full_errors_on_request(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["bitexp", "quantizer=trenary"])
    with pytest.raises(Exception, match="trenary"):
        bitexp.__main__.main()
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_a_bug_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, small: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    import bitexp.run.road

    def broken(settings: Any) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(bitexp.run.road, "build", broken)
    monkeypatch.setattr(sys, "argv", ["bitexp", *small])
    with pytest.raises(ZeroDivisionError, match="ours"):
        bitexp.__main__.main()
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_a_closed_pipe_is_no_error() -> None:
    words = [sys.executable, "-m", "bitexp", "--help"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate()
    assert err == b""
    assert process.returncode == 0


# the words


def test_nearest() -> None:
    assert nearest("cn", ["cnn", "vit"]) == " Did you mean 'cnn'?"
    assert nearest("transformer", ["cnn", "vit"]) == ""


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("sed", "unknown key 'sed'. Did you mean 'seed'? Known: seed, a, off"),
        ("a.bcd", "unknown key 'a.bcd'. Did you mean 'a.bc'? Known in a: bc, e"),
        ("bc", "unknown key 'bc'. Did you mean 'a.bc'? Known: seed, a, off"),
        ("a.x.y", "unknown key 'a.x.y'. Known in a: bc, e"),
        ("off.x", "unknown key 'off.x'. 'off' has no keys here: set it as a whole, as in 'off={x: ...}'"),
    ],
)
def test_unknown_key(key: str, expected: str) -> None:
    assert unknown_key(key, ["seed", "a", "a.bc", "a.e", "off"]) == expected


@pytest.mark.parametrize(
    ("crash", "kind", "reason"),
    [
        (MemoryError(), "out_of_memory", "out of memory (MemoryError)"),
        (
            RuntimeError("CUDA out of memory. Tried"),
            "out_of_memory",
            "out of memory (RuntimeError: CUDA out of",
        ),
        (
            RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory"),
            "out_of_memory",
            "out of",
        ),
        (
            OSError(28, "No space left on device"),
            "disk_full",
            "the disk is full (OSError: [Errno 28] No space",
        ),
        (OSError(13, "Permission denied"), "crash", "PermissionError: [Errno 13] Permission denied"),
        (OSError(30, "Read-only", "/ro/x"), "surroundings", "/ro/x cannot be used: it is on a file system"),
        (OSError(36, "Too long", "n" * 300), "surroundings", f"{'n' * 120}... cannot be used: the name"),
        (OSError(37, "No locks", b"/nfs/l"), "surroundings", "/nfs/l cannot be used: its file system has no"),
        (OSError(2, "No such file", "/gone"), "crash", "FileNotFoundError"),
        (KeyError("x"), "crash", "KeyError: 'x'"),
        (ValueError("one\ntwo"), "crash", "ValueError: one"),
    ],
)
def test_describe_crash(crash: Exception, kind: str, reason: str) -> None:
    described = describe_crash(crash)
    assert described["kind"] == kind
    assert described["reason"].startswith(reason)


@pytest.mark.parametrize(("words", "code"), [([], 2), (["-m", "seed=0,1"], 1)])
def test_a_file_in_place_of_a_folder_is_a_sentence(
    words: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    (tmp_path / "outputs").write_text("")
    monkeypatch.setenv("BITEXP_OUTPUTS", str(tmp_path / "outputs"))
    ended = command(*words)
    assert ended.code == code, ended.out + ended.err
    assert f"{tmp_path}/outputs cannot be used: a file is in the place of a folder" in ended.err + ended.out
    assert "Traceback" not in ended.err + ended.out


@pytest.mark.parametrize("words", [(), ("-m", "seed=0,1"), ("-m", "+sweeps=tune")])
def test_a_job_stays_in_its_folder(words: tuple[str, ...], command: Any) -> None:
    """A multirun is refused as a whole."""
    ended = command(*words, "hydra.job.chdir=true")
    assert ended.code == 2
    assert ended.err.count("BITEXP_OUTPUTS") == 1
    assert "jobs: " not in ended.out


def test_a_set_of_runs_needs_its_flag(command: Any) -> None:
    ended = command("+experiment=vit_ternary", "+sweeps=precisions", "seed=1")
    assert ended.code == 2
    assert "Type -m: python -m bitexp -m +experiment=vit_ternary +sweeps=precisions seed=1." in ended.err
    assert "A single run of them needs a value for quantizer\n" in ended.err


def test_the_help_lists_what_is_typed(command: Any) -> None:
    lines = command("--help").out.splitlines()
    groups = {line.partition(":")[0] for line in lines if re.match(r"\w+: ", line)}
    assert {"data", "experiment", "recipe", "sweeps"} < groups
    assert not groups & {"base", "tuning", "hydra"}


def test_what_came_before_a_crash_explains_it() -> None:
    crash = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 3 vs 2")
    crash.__context__ = MemoryError()
    assert describe_crash(crash)["kind"] == "out_of_memory"
    crash.__context__ = KeyError("x")
    assert describe_crash(crash)["kind"] == "crash"


def test_another_package_brings_its_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    from hydra._internal.config_search_path_impl import ConfigSearchPathImpl

    (tmp_path / "their_package" / "conf" / "model").mkdir(parents=True)
    (tmp_path / "their_package" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    points = [EntryPoint("theirs", "their_package.things", "bitexp")]
    monkeypatch.setattr("bitexp.config.paths.entry_points", lambda group: points)
    search_path = ConfigSearchPathImpl()
    PluginConfigs().manipulate_search_path(search_path)
    assert [item.path for item in search_path.get_path()] == [f"file://{tmp_path}/their_package/conf"]
