"""Runs that learn from another run: what is recorded, refused, resumed and kept."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bitexp.common.errors import UserError
from bitexp.config.schema import read_settings
from bitexp.deploy import find_source
from bitexp.deploy.frozen import FrozenLayer
from bitexp.kernels.reference import Reference
from bitexp.run import distill, road
from bitexp.tasks.distillation import Distiller
from bitexp.track.checkpoint_files import LAST, load_checkpoint
from tests.support.configs import compose_config
from tests.support.training import Train
from tests.support.training import train as make

ROOT = Path(__file__).parents[2]
TEXT = ("task=language_modelling", "data=text", "model=decoder", "model.depth=2", "model.dim=32")
TEXT += ("data.context=16", "data.batch_size=4", "data.eval_batch_size=4", "logger=csv", "trainer.epochs=2")
TEXT += ("trainer.train_batches=3", "trainer.eval_batches=1", "callbacks.progress=none")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in full precision."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITEXP_OUTPUTS", str(tmp_path_factory.mktemp("taught") / "outputs"))
        return make("quantizer=full", "seed=1").folder


def logged(folder: Path, name: str) -> list[tuple[str, float]]:
    with (folder / "metrics.csv").open() as file:
        return [(row["step"], float(row["value"])) for row in csv.DictReader(file) if row["metric"] == name]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_checkpoint(folder / "checkpoints" / LAST)["state_dict"]
    return state


def same_weights(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_that_learns_from_another(train: Train, teacher: Path) -> None:
    alone = train()
    taught = train(f"distill.teacher={teacher}", "trainer.log_every=2")
    assert taught.status == "finished"
    assert taught.result["metrics"]["test/loss"] == taught.result["metrics"]["test_packed/loss"]
    steps = dict(logged(taught.folder, "train/loss"))
    terms = [dict(logged(taught.folder, f"train/{name}")) for name in ("cross_entropy", "logits")]
    assert list(steps)
    for step, value in steps.items():
        assert value == pytest.approx(sum(term[step] for term in terms), rel=1e-5)
    assert list(weights(taught.folder)) == list(weights(alone.folder))
    assert not same_weights(taught.folder, alone.folder)
    sizes = [run.result["metrics"]["size/total_bytes"] for run in (taught, alone)]
    assert sizes[0] == pytest.approx(sizes[1], abs=200)  # the header names its settings
    (attempt,) = json.loads((taught.folder / "provenance.json").read_text())["attempts"]
    assert attempt["teacher"]["identity"] == teacher.name
    assert attempt["teacher"]["kind"] == "run"
    assert "teacher    " in (taught.folder / "train.log").read_text()


@pytest.mark.slow
def test_the_teacher_counts_by_what_it_is(train: Train, teacher: Path, tmp_path: Path) -> None:
    """Not by where it lies, and a term without weight is none."""
    words = [f"distill.teacher={teacher}", "trainer.epochs=1"]
    first = train(*words)
    moved = tmp_path / "elsewhere" / teacher.name
    moved.parent.mkdir()
    moved.symlink_to(teacher)
    again = [
        train(f"distill.teacher={moved}", "trainer.epochs=1"),
        train(*words, "distill.losses.logits=1", "distill.losses.hidden.layers=[0]"),
    ]
    assert [run.folder for run in again] == [first.folder] * 2
    assert not any(run.trained for run in again)
    other = train("quantizer=full", "seed=2").folder
    assert train(f"distill.teacher={other}", "trainer.epochs=1").folder != first.folder
    packed = train(f"distill.teacher={teacher / 'packed.safetensors'}", "trainer.epochs=1")
    assert packed.folder != first.folder
    assert same_weights(packed.folder, first.folder)


def test_without_a_teacher_runs_keep_their_ids() -> None:
    settings = read_settings(compose_config())
    assert settings.distill is None
    assert settings.model_dump(mode="json")["distill"] is None
    with pytest.raises(UserError, match=r"distill\.precision=16 should be '32' or 'bf16'"):
        read_settings(compose_config("distill.precision='16'"))


@pytest.mark.slow
def test_a_student_of_text_compares_all_there_is(train: Train, data_sets: Path) -> None:
    base = (*TEXT, f"data.files=[{data_sets}/texts]")
    teacher = train("quantizer=full", base=base).folder
    losses = ("distill.losses.logits={weight: 10, temperature: 5}", "distill.losses.attention=1e5")
    run = train(f"distill.teacher={teacher}", *losses, "distill.losses.hidden=1", base=base)
    assert run.status == "finished"
    for name in ("cross_entropy", "logits", "attention", "hidden"):
        values = [value for _, value in logged(run.folder, f"train/{name}")]
        assert values
        assert all(value > 0 for value in values)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("kind", ["images", "text"])
def test_it_resumes_to_the_bit(
    kind: str, train: Train, data_sets: Path, monkeypatch: pytest.MonkeyPatch, outputs: Path
) -> None:
    base = ("logger=csv", "callbacks.progress=none", "trainer.epochs=2", "trainer.train_batches=4")
    base += ("trainer.eval_batches=1", "model=vit", "model.depth=1", "model.dropout=0.1", "task.mixup=0.2")
    losses = ["distill.losses.hidden=1", "distill.losses.attention=10", "trainer.accumulate=2"]
    if kind == "text":
        base = (*TEXT, f"data.files=[{data_sets}/texts]", "model.dropout=0.1")
    teacher = train("quantizer=full", base=base).folder
    words = (f"distill.teacher={teacher}", *losses, "callbacks.checkpoint.every_steps=1")
    undisturbed = train(*words, base=base).folder
    asked = Distiller.terms
    calls = 0

    def killed(self: Distiller, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Killed
        return asked(self, *arguments)

    monkeypatch.setenv("BITEXP_OUTPUTS", str(outputs / "again"))
    monkeypatch.setattr(Distiller, "terms", killed)
    with pytest.raises(Killed):
        train(*words, base=base)
    monkeypatch.setattr(Distiller, "terms", asked)
    resumed = train(*words, base=base).folder
    assert len(json.loads((resumed / "provenance.json").read_text())["attempts"]) == 2
    assert resumed.name == undisturbed.name
    assert same_weights(resumed, undisturbed)
    assert logged(resumed, "train/logits") == logged(undisturbed, "train/logits")


def test_it_does_not_go_on_with_other_weights(
    train: Train, teacher: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    teacher = shutil.copytree(teacher, tmp_path / teacher.name)
    words = (f"distill.teacher={teacher}", "callbacks.checkpoint.every_steps=1")

    def killed(*_: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(road, "measure", killed)
        with pytest.raises(Killed):
            train(*words)
    for path in (teacher / "checkpoints").glob("*.ckpt"):
        content = torch.load(path, weights_only=True)
        content["state_dict"]["model.head.bias"] += 1
        torch.save(content, path)
    with pytest.raises(UserError, match="holds other weights than those that this run has learned from"):
        train(*words)


@pytest.mark.slow
def test_two_processes_learn_what_one_would_with_the_whole_batch(
    train: Train, teacher: Path, outputs: Path, small: Any
) -> None:
    words = ("quantizer=full", f"distill.teacher={teacher}", "distill.losses.hidden=1")
    alone = train(*words, "data.batch_size=64")
    together = [sys.executable, "-m", "bitexp", *small, *words, "trainer=ddp", "data.batch_size=32"]
    for extra in ([], ["distill.losses.hidden=0", "distill.cache=true"]):
        done = subprocess.run([*together, *extra, "name=two"], cwd=ROOT, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
    assert len(list(outputs.glob("two/*/result.json"))) == 2
    (folder,) = (
        path.parent for path in outputs.glob("two/*/config.yaml") if "cache: false" in path.read_text()
    )
    expected = weights(alone.folder)
    for name, weight in weights(folder).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5)


def test_kept_logits_change_nothing(
    train: Train, teacher: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outputs: Path
) -> None:
    words = (f"distill.teacher={teacher}", "trainer.epochs=3", "trainer.train_batches=null", "data.workers=0")
    plain = train(*words).folder
    monkeypatch.setenv("BITEXP_CACHE", str(tmp_path / "cache"))
    kept = train(*words, "distill.cache=true").folder
    assert kept != plain
    assert same_weights(kept, plain)
    assert logged(kept, "train/logits") == logged(plain, "train/logits")
    (file,) = (tmp_path / "cache" / "logits").glob("*/logits.fp32")
    said = (kept / "train.log").read_text()
    assert re.search(r"its logits take [\d.]+ kB on disk", said)
    assert file.stat().st_size % 40 == 0
    file.write_bytes(file.read_bytes()[:-8])
    monkeypatch.setenv("BITEXP_OUTPUTS", str(outputs / "again"))
    assert same_weights(train(*words, "distill.cache=true").folder, plain)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["distill.cache=true", "data.augment.flip=true"], "data=digits gives other samples in every epoch"),
        (["distill.cache=true", "task.mixup=0.2"], "task=image_classification mixes images"),
        (
            ["distill.cache=true", "distill.losses.hidden=1"],
            "distill.losses.hidden looks at more than logits",
        ),
        (["distill.losses.logits=0"], "the teacher is looked at by no loss; give one a weight, such as"),
        (["+distill.losses.logit=1"], "unknown distillation loss 'logit'. Did you mean 'logits'"),
        (["+distill.losses.logits.temprature=2"], "unknown key 'distill.losses.logits.temprature'"),
        (
            ["distill.losses.logits.temperature=0"],
            "distill.losses.logits.temperature=0 should be greater than 0",
        ),
        (
            ["distill.losses.logits.weight=-1"],
            "distill.losses.logits.weight=-1 should be greater than or equal",
        ),
        (["+distill.losses.task.temperature=2"], "unknown key 'distill.losses.task.temperature'"),
        (["distill.losses.attention=1"], "MLP does not say where its query states are"),
        (["distill.losses.hidden=1", "model.hidden=[16,16]"], "the student has 2 and the teacher 1; name"),
        (["distill.losses.hidden=1", "model.hidden=[8]"], "the student's are [8] and the teacher's [16]"),
        (["data=fashion_mnist"], "the teacher cannot take a batch of [2, 1, 28, 28]"),
        (["data=image_folder", "model=cnn", "data.workers=0"], "the teacher cannot take a batch of"),
        (
            ["data.normalize=false"],
            "those of these data are taken to have 0 and 1; use the same data.normalize",
        ),
        (["distill.teacher=nowhere"], "distill.teacher=nowhere names nothing that is there"),
        (["distill.teacher=''"], "distill.teacher has no value; it may name the folder of a finished run"),
    ],
)
def test_a_mistake_is_explained_before_anything_is_trained(
    words: list[str], said: str, train: Train, teacher: Path, data_sets: Path, outputs: Path
) -> None:
    before = sorted(outputs.rglob("*/provenance.json"))
    if words[0].startswith("data=") and "digits" not in words[0]:
        folder = f"{data_sets}/pictures" if "image_folder" in words[0] else data_sets
        words = [*words, f"data.data_dir={folder}"]
    base = ("logger=csv", "callbacks.progress=none", "trainer.epochs=1")
    hidden = [] if any(word.startswith("model") for word in words) else ["model.hidden=[16]"]
    with pytest.raises(UserError, match=re.escape(said)):
        train(f"distill.teacher={teacher}", *words, *hidden, base=base)
    assert sorted(outputs.rglob("*/provenance.json")) == before


def test_another_vocabulary_is_refused(train: Train, data_sets: Path) -> None:
    base = (*TEXT, f"data.files=[{data_sets}/texts]")
    teacher = train("quantizer=full", base=base).folder
    tokens = ("data.tokenizer=bpe", "data.vocabulary=300")
    with pytest.raises(UserError, match="reads another vocabulary than these data are written in"):
        train(f"distill.teacher={teacher}", *tokens, base=base)


def test_other_classes_are_refused(train: Train, data_sets: Path) -> None:
    where = f"data.data_dir={data_sets}"
    teacher = train("quantizer=full", "data=cifar10", where).folder
    with pytest.raises(UserError, match=r"gives \[10\] for an input and the student \[100\]"):
        train(f"distill.teacher={teacher}", "data=cifar100", where)


def test_other_words_for_the_classes_are_refused(train: Train, data_sets: Path) -> None:
    where = f"data.data_dir={data_sets}"
    teacher = train("quantizer=full", "data=mnist", where).folder
    with pytest.raises(
        UserError, match="has learned other classes than those of the data: what is 0 there is T-shirt"
    ):
        train(f"distill.teacher={teacher}", "data=fashion_mnist", where)


def test_logits_that_no_disk_holds_are_not_begun(
    train: Train, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "cache_bytes", lambda *_: 10**18)
    with pytest.raises(
        UserError, match=r"distill.cache=true needs 1000000000.00 GB in .*, where .* are free"
    ):
        train(f"distill.teacher={teacher}", "distill.cache=true")


def test_a_teacher_is_made_first_and_found_the_next_time(train: Train, outputs: Path) -> None:
    first = train("+recipe=self_distill")
    assert first.status == "finished"
    known = {path.parent.name for path in outputs.glob("*/*/result.json")}
    assert len(known) == 2
    alone = train("quantizer=full")
    assert not alone.trained
    (attempt,) = json.loads((first.folder / "provenance.json").read_text())["attempts"]
    assert attempt["teacher"]["identity"] == alone.folder.name
    named = train(f"distill.teacher={alone.folder}")
    assert (named.folder, named.trained) == (first.folder, False)
    other = train("+recipe=self_distill", "seed=3", "distill.teacher_seed=0")
    assert len(list(outputs.glob("*/*/result.json"))) == 3
    (attempt,) = json.loads((other.folder / "provenance.json").read_text())["attempts"]
    assert attempt["teacher"]["identity"] == alone.folder.name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["+distill.losses.logit=1"], "unknown distillation loss 'logit'"),
        (["distill.losses.attention=1"], "the run that comes first: MLP does not say where its query states"),
        (["distill.teacher.run={quantizer: fulll}"], "distill.teacher.run: "),
    ],
)
def test_a_mistake_is_told_before_the_teacher_is_trained(
    words: list[str], said: str, train: Train, outputs: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        train("+recipe=self_distill", *words)
    assert not list(outputs.glob("*/*/provenance.json"))


def test_a_kernel_that_needs_a_gpu_is_not_asked_on_the_cpu(train: Train) -> None:
    asked = []
    teacher = train("trainer.epochs=1").folder

    class OnGpu(Reference):
        def unavailable(self, device_type: str) -> str | None:
            return "it runs on GPUs" if device_type == "cpu" else None

        def prepare(self, *arguments: Any) -> Any:
            asked.append(arguments)
            return super().prepare(*arguments)

    kernel = OnGpu()
    model = find_source(str(teacher / "packed.safetensors")).model(kernel=kernel)
    frozen = [module for module in model.modules() if isinstance(module, FrozenLayer)]
    before = len(asked)
    with distill.by_torch(kernel, model):
        assert not any(layer.kernel is kernel for layer in frozen)
        assert len(asked) == before
    assert all(layer.kernel is kernel for layer in frozen)
    assert len(asked) == before + len(frozen)
