"""Faults, each of them done: processes are killed, files damaged, disks filled; nothing may be lost."""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

import bitexp.run.evaluate
import bitexp.run.fit
from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.track.checkpoint_files import BEST, DAMAGED, LAST, PREVIOUS, damage, load_checkpoint
from bitexp.track.folder import RunFolder

EVERY_STEP = "callbacks.checkpoint.every_steps=1"
VARIANTS = {
    "plain": (),
    "long": ("trainer.epochs=20",),
    "random": ("data.augment={crop: 1, flip: true}", "model.dropout=0.2", "task.mixup=0.4", "task.cutmix=1"),
    "accumulate": ("trainer.train_batches=7", "trainer.accumulate=2", "trainer.log_every=1"),
    "ema": ("callbacks.ema_decay=0.9", "quantizer.lambda_schedule={name: linear, start: 0.1, end: 0.9}"),
    "bf16": ("trainer.precision=bf16-true", "optimizer.stochastic_rounding=true"),
    "mixed": ("trainer.precision=bf16-mixed", "trainer.gradient_clip=0.5", "optimizer=sgd"),
    "workers": ("data.workers=2", "data.augment={crop: 1, flip: false}"),
    "best": ("callbacks.checkpoint.monitor=val/loss", "callbacks.checkpoint.mode=min", "optimizer.lr=0.3"),
    "patience": ("callbacks.early_stopping={monitor: val/loss, mode: max, patience: 1}", "trainer.epochs=9"),
    "two_stage": ("scheduler=two_stage", "trainer.max_steps=6", "quantizer=binary", "trainer.log_every=3"),
    "text": ("model.dropout=0.1",),
    "text_continual": ("+recipe=continual_reset",),
    "text_bf16": ("+recipe=bf16_latents_stochastic", "data.workers=1"),
}
TEXT = ("task=language_modelling", "data=stdlib", "model=decoder", "model.dim=16", "model.depth=1")
TEXT += ("data.context=16", "data.val_windows=20", "optimizer.lr=0.01")


@pytest.fixture(scope="session")
def base(tiny: tuple[str, ...], small: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """What a variant changes: the small run on digits, or a small language model."""
    return lambda variant: (*tiny, *TEXT) if variant.startswith("text") else small


RANDOM = [name for name in VARIANTS if name not in ("plain", "long")]


class At(pl.Callback):
    """Does something when a hook is called for the n-th time."""

    def __init__(self, hook: str, count: int, act: Callable[[], Any]) -> None:
        self.left = count
        self.act = act
        setattr(self, hook, self._called)

    def _called(self, *_: Any, **__: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self.act()


def arrange(hook: str, count: int, act: Callable[[], Any]) -> None:
    """Adds `At` to the trainer of this process, after all other callbacks."""
    build = bitexp.run.fit.build_trainer

    def build_with(settings: Any, callbacks: list[pl.Callback], loggers: list[Any]) -> pl.Trainer:
        return build(settings, [*callbacks, At(hook, count, act)], loggers)

    bitexp.run.fit.build_trainer = build_with


def send(*signals: int) -> None:
    """Sends signals to this process."""
    for number in signals:
        os.kill(os.getpid(), number)


def at(hook: str, count: int, *signals: int) -> Callable[[], None]:
    """Arranges for signals at a hook."""
    return partial(arrange, hook, count, partial(send, *signals))


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same, tensors to the bit."""
    if isinstance(a, torch.Tensor):
        return (
            a.dtype == b.dtype
            and a.shape == b.shape
            and a.numpy(force=True).tobytes() == b.numpy(force=True).tobytes()
            if a.dtype != torch.bfloat16
            else torch.equal(a, b)
        )
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def remains(folder: Path) -> dict[str, Any]:
    """What has to be the same in two runs: weights, optimizer, packed file, metrics but for times."""
    checkpoint = load_checkpoint(folder / "checkpoints" / LAST)
    states = (
        "state_dict",
        "current_model_state",
        "averaging_state",
        "optimizer_states",
        "global_step",
        "epoch",
    )
    rows = (folder / "metrics.csv").read_text().splitlines()
    best = folder / "checkpoints" / BEST
    return {
        **{name: checkpoint.get(name) for name in states},
        "best": load_checkpoint(best)["state_dict"] if best.exists() else None,
        "packed": (folder / "packed.safetensors").read_bytes(),
        "rows": [row for row in rows if ",time/" not in row],
        "metrics": json.loads((folder / "result.json").read_text())["metrics"],
    }


def assert_same(folder: Path, expected: dict[str, Any]) -> None:
    found = remains(folder)
    assert found["rows"] == expected["rows"]
    for name, value in expected.items():
        assert same(found[name], value), name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, compose_config: Any, base: Any) -> Any:
    """What remains of a variant of its run when nothing happens to it; each is made once."""
    from bitexp.run.road import run

    made: dict[str, dict[str, Any]] = {}

    def make(name: str) -> dict[str, Any]:
        if name not in made:
            words = (*base(name), *VARIANTS[name])
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("BITEXP_OUTPUTS", str(tmp_path_factory.mktemp("undisturbed")))
                outcome = run(compose_config(*words), words, Report(quiet=True))
            assert outcome.result["reason"] is None
            made[name] = remains(outcome.folder)
        return made[name]

    return make


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory: pytest.TempPathFactory, command: Any, small: Any) -> Path:
    """An outputs folder with a small run that was killed after its sixth step, with two checkpoints."""
    place = tmp_path_factory.mktemp("killed")
    words = (*small, EVERY_STEP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITEXP_OUTPUTS", str(place / "outputs"))
        ended = command(*words, first=at("on_train_batch_end", 6, signal.SIGKILL))
    assert ended.code == -signal.SIGKILL
    return place / "outputs"


@pytest.fixture
def interrupted(killed_run: Path, outputs: Path) -> Path:
    """The folder of such a run."""
    shutil.copytree(killed_run, outputs)
    (config,) = outputs.glob("*/*/config.yaml")
    return config.parent


# killed

MOMENTS = [
    ("on_train_batch_start", 1),
    ("on_train_batch_end", 1),
    ("on_train_batch_end", 4),
    ("on_validation_end", 1),
    ("on_train_epoch_end", 1),
    ("on_train_batch_start", 5),
    ("on_train_batch_end", 7),
    ("on_train_epoch_end", 2),
    *(pytest.param("on_train_batch_end", count, marks=pytest.mark.slow) for count in (2, 3, 5, 6, 8)),
    pytest.param("on_validation_start", 1, marks=pytest.mark.slow),
    pytest.param("on_validation_end", 2, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("hook", "count"), MOMENTS)
def test_killed_at_any_moment_a_run_ends_as_if_nothing_had_happened(
    hook: str, count: int, command: Any, train: Any, small: Any, undisturbed: Any
) -> None:
    ended = command(*small, EVERY_STEP, first=at(hook, count, signal.SIGKILL))
    assert ended.code == -signal.SIGKILL
    outcome = train()
    resumed = "resumes    from last.ckpt" in (outcome.folder / "train.log").read_text()
    assert resumed == ((hook, count) != ("on_train_batch_start", 1))
    assert_same(outcome.folder, undisturbed("plain"))


@pytest.mark.parametrize(
    ("variant", "hook", "count"),
    [
        *((name, "on_train_batch_end", 6) for name in RANDOM),
        ("patience", "on_train_epoch_end", 1),
        ("patience", "on_train_epoch_end", 2),
        ("two_stage", "on_train_epoch_end", 1),
        *(pytest.param(name, "on_train_epoch_end", 1, marks=pytest.mark.slow) for name in RANDOM),
        pytest.param("two_stage", "on_train_epoch_end", 2, marks=pytest.mark.slow),
    ],
)
def test_whatever_is_random_or_averaged_continues_to_the_bit(
    variant: str, hook: str, count: int, command: Any, train: Any, base: Any, undisturbed: Any
) -> None:
    words = VARIANTS[variant]
    every = "callbacks.checkpoint.every_steps=3" if variant == "accumulate" else EVERY_STEP
    expected = undisturbed(variant)
    ended = command(*base(variant), *words, every, first=at(hook, count, signal.SIGKILL))
    assert ended.code == -signal.SIGKILL, ended.err
    outcome = train(*words, base=base(variant))
    assert outcome.result["reason"] is None
    assert "resumes    from last.ckpt" in (outcome.folder / "train.log").read_text()
    assert_same(outcome.folder, expected)


@pytest.mark.parametrize(
    ("count", "after"),
    [
        *((count, False) for count in range(2, 7)),
        *(pytest.param(count, True, marks=pytest.mark.slow) for count in range(1, 7)),
    ],
)
def test_killed_while_a_checkpoint_is_written(
    count: int, after: bool, command: Any, train: Any, small: Any, undisturbed: Any
) -> None:
    def arrange_kill() -> None:
        replace, left = os.replace, [count]

        def replace_or_die(source: Any, target: Any) -> None:
            left[0] -= str(target).endswith(".ckpt")
            if left[0] == 0 and not after:
                send(signal.SIGKILL)
            replace(source, target)
            if left[0] == 0:
                send(signal.SIGKILL)

        os.replace = replace_or_die

    words = VARIANTS["best"]
    assert command(*small, *words, first=arrange_kill).code == -signal.SIGKILL
    outcome = train(*words)
    assert_same(outcome.folder, undisturbed("best"))


@pytest.mark.parametrize("count", [1, 2, 3, 5, pytest.param(4, marks=pytest.mark.slow)])
def test_a_language_model_killed_at_any_step_continues_to_the_bit(
    count: int, command: Any, train: Any, base: Any, undisturbed: Any
) -> None:
    words = VARIANTS["text_continual"]
    ended = command(*base("text"), *words, EVERY_STEP, first=at("on_train_batch_end", count, signal.SIGKILL))
    assert ended.code == -signal.SIGKILL, ended.err
    outcome = train(*words, base=base("text"))
    assert "resumes    from last.ckpt" in (outcome.folder / "train.log").read_text()
    assert_same(outcome.folder, undisturbed("text_continual"))


def test_text_that_changed_meanwhile_is_told_and_nothing_is_lost(
    command: Any, train: Any, base: Any, tmp_path: Path, outputs: Path
) -> None:
    text = tmp_path / "book.txt"
    text.write_text("It was the best of times, it was the worst of times. " * 100)
    words = ("data=text", f"data.files=[{text}]")
    ended = command(*base("text"), *words, EVERY_STEP, first=at("on_train_batch_end", 3, signal.SIGKILL))
    assert ended.code == -signal.SIGKILL, ended.err
    (folder,) = (path.parent for path in outputs.glob("*/*/config.yaml"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    original = text.read_text()
    text.write_text(original.replace("best", "Best"))
    ended = command(*base("text"), *words)
    assert ended.code == 2
    assert "the data have changed since this run was started in" in ended.err
    assert folder.name in ended.err
    assert "use rerun=true to start a new run on the data as they are now" in ended.err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    new = train(*words, "rerun=true", base=base("text"))
    assert new.folder != folder
    text.write_text(original)
    continued = train(*words, base=base("text"))
    assert continued.folder == folder
    assert "resumes    from last.ckpt" in (folder / "train.log").read_text()


def test_a_grid_that_is_killed_twice_runs_every_cell_once(command: Any, small: Any, outputs: Path) -> None:
    words = ("-m", *small, "+sweeps=lr_weight_decay", "quantizer=full,binary")
    words += ("optimizer.lr=0.01,0.03", "optimizer.weight_decay=0.0,0.1")

    def die_as_run_begins(number: int) -> None:
        begin, left = RunFolder.begin, [number]

        def begin_or_die(*arguments: Any) -> None:
            begin(*arguments)
            left[0] -= 1
            if left[0] == 0:
                send(signal.SIGKILL)

        RunFolder.begin = begin_or_die  # type: ignore[method-assign]

    for number in (3, 4):
        assert command(*words, first=partial(die_as_run_begins, number)).code == -signal.SIGKILL
    ended = command(*words)
    assert ended.code == 0, ended.err
    assert "8 jobs: 3 trained, 5 finished before, 0 not finished" in ended.out
    assert "each row is its best setting by validation" in ended.out
    provenance = [json.loads(path.read_text()) for path in outputs.glob("*/*/provenance.json")]
    assert sorted(len(run["attempts"]) for run in provenance) == [1] * 6 + [2] * 2


def test_killed_from_outside(train: Any, small: Any, outputs: Path, undisturbed: Any) -> None:
    words = (*small, *VARIANTS["long"], EVERY_STEP)
    process = subprocess.Popen(
        [sys.executable, "-m", "bitexp", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list(outputs.glob("*/*/checkpoints/previous.ckpt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    out, err = process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert out.startswith("bitexp · first_steps · ternary_mean · seed 0")
    assert err == ""
    (folder,) = (path.parent for path in outputs.glob("*/*/checkpoints"))
    assert not (folder / "result.json").exists()
    assert 0 < load_checkpoint(folder / "checkpoints" / PREVIOUS)["global_step"] < 80
    outcome = train(*VARIANTS["long"])
    assert outcome.folder == folder
    assert "resumes    from " in (folder / "train.log").read_text()
    assert_same(folder, undisturbed("long"))


# stopped by a signal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("hook", "count"),
    [("setup", 1), ("on_train_batch_start", 4), ("on_train_batch_start", 6), ("on_validation_start", 2)],
)
def test_a_signal_ends_a_run_after_a_checkpoint(
    number: int, hook: str, count: int, command: Any, train: Any, small: Any, outputs: Path, undisturbed: Any
) -> None:
    ended = command(*small, first=at(hook, count, number))
    assert ended.code == 128 + number, ended.err
    name = signal.Signals(number).name
    assert f"Stopped by {name} after a checkpoint" in ended.out
    assert "The same command continues" in ended.out
    assert ended.err == ""
    (file,) = outputs.glob("*/*/result.json")
    result = json.loads(file.read_text())
    assert (result["status"], result["reason"], result["signal"]) == ("stopped", name, number)
    outcome = train()
    assert outcome.trained
    assert_same(outcome.folder, undisturbed("plain"))


def test_a_signal_during_the_test_stops_too(command: Any, train: Any, small: Any, undisturbed: Any) -> None:
    def arrange_signal() -> None:
        test = bitexp.run.evaluate.test

        def stop_and_test(*arguments: Any) -> dict[str, float]:
            bitexp.run.evaluate.test = test
            send(signal.SIGTERM)
            return test(*arguments)

        bitexp.run.evaluate.test = stop_and_test

    assert command(*small, first=arrange_signal).code == 143
    assert_same(train().folder, undisturbed("plain"))


def test_a_second_ctrl_c_quits_at_once(command: Any, train: Any, small: Any, undisturbed: Any) -> None:
    ended = command(*small, EVERY_STEP, first=at("on_train_batch_start", 3, signal.SIGINT, signal.SIGINT))
    assert ended.code == -signal.SIGINT
    assert_same(train().folder, undisturbed("plain"))


def test_ctrl_c_ends_the_whole_multirun(command: Any, small: Any, outputs: Path) -> None:
    ended = command("-m", *small, "seed=0,1,2", first=at("on_train_batch_start", 2, signal.SIGINT))
    assert ended.code == 130
    assert len(list(outputs.glob("*/*/result.json"))) == 1


# damaged and hostile files


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def poison(path: Path) -> None:
    torch.save({**load_checkpoint(path), "state_dict": Evil(path.with_name("executed"))}, path)


def poison_plainly(path: Path) -> None:
    path.write_bytes(pickle.dumps(Evil(path.with_name("executed"))))


def replace_by_another(path: Path) -> None:
    torch.save({"weights": torch.ones(3)}, path)


DAMAGE = [truncate, flip_a_bit, empty, poison, poison_plainly, replace_by_another]


@pytest.mark.parametrize("spoil", DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    spoil: Callable[[Path], None],
    interrupted: Path,
    train: Any,
    undisturbed: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = interrupted
    spoil(folder / "checkpoints" / LAST)
    outcome = train(report=Report())
    said = capsys.readouterr().out
    assert "resumes    from previous.ckpt" in said
    assert "last.ckpt is damaged: it" in said
    assert not (folder / "checkpoints" / "executed").exists()
    assert (folder / "checkpoints" / DAMAGED).exists()
    assert_same(outcome.folder, undisturbed("plain"))


@pytest.mark.parametrize("spoil", [truncate, poison])
def test_without_a_whole_checkpoint_nothing_is_touched(
    spoil: Callable[[Path], None], interrupted: Path, command: Any, train: Any, small: Any, undisturbed: Any
) -> None:
    folder = interrupted
    checkpoints = folder / "checkpoints"
    spoil(checkpoints / LAST)
    spoil(checkpoints / PREVIOUS)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    ended = command(*small)
    assert ended.code == 2
    assert "last.ckpt is damaged" in ended.err
    assert "previous.ckpt is damaged" in ended.err
    assert "Use rerun=true to start this run over" in ended.err
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert_same(train("rerun=true").folder, undisturbed("plain"))
    kept = list(folder.parent.glob(".replaced/*/checkpoints/last.ckpt"))
    assert [path.read_bytes() for path in kept] == [before[folder / "checkpoints" / LAST]]


def test_no_flipped_bit_of_a_checkpoint_goes_unseen(interrupted: Path) -> None:
    path = interrupted / "checkpoints" / LAST
    whole, content = path.read_bytes(), load_checkpoint(path)
    draw = random.Random(0)
    for position in [*draw.sample(range(len(whole)), 200), *range(len(whole) - 60, len(whole))]:
        flipped = bytearray(whole)
        flipped[position] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        assert damage(path) is not None or same(load_checkpoint(path), content), position


def test_a_damaged_best_checkpoint_is_not_tested(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words = VARIANTS["best"]
    test = bitexp.run.evaluate.test
    with monkeypatch.context() as patch:
        patch.setattr(bitexp.run.evaluate, "test", lambda *_: 1 / 0)
        outcome = train(*words)
    assert (outcome.status, outcome.result["kind"]) == ("failed", "crash")
    flip_a_bit(outcome.folder / "checkpoints" / BEST)
    assert bitexp.run.evaluate.test is test
    with pytest.raises(UserError, match=r"best\.ckpt is damaged.* rerun=true"):
        train(*words)


GARBAGE = [
    b"",
    b"\xff\xfe\x00",
    b"null",
    b"[]",
    b"{}",
    b'{"status": "finished"}',
    b'{"status": 3, "kind": []}',
]


@pytest.mark.parametrize("content", GARBAGE)
def test_garbage_in_result_json_counts_as_none(content: bytes, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "result.json").write_bytes(content)
    assert folder.result() is None


def test_garbage_in_a_run_folder_is_survived(interrupted: Path, train: Any, undisturbed: Any) -> None:
    (interrupted / "result.json").write_bytes(b'{"status": "finished"}')
    (interrupted / "provenance.json").write_bytes(b'{"attempts": [1, null, {"versions": 3, "threads": "x"}]}')
    (interrupted / "config.yaml").write_bytes(b"!!python/object/apply:os.system [exit]")
    (interrupted / "overrides.yaml").write_bytes(b"\xff")
    assert_same(train().folder, undisturbed("plain"))
    attempts = json.loads((interrupted / "provenance.json").read_text())["attempts"]
    assert [attempt.get("pid") for attempt in attempts] == [None, os.getpid()]


@pytest.mark.parametrize("content", [b"\xff", b"[]", b'{"attempts": 3}', b'{"attempts": [3, null]}'])
def test_garbage_in_provenance_json_is_no_attempt(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_bytes(content)
    assert RunFolder(tmp_path).attempts() == []


def test_a_resumption_under_other_conditions_says_so(
    interrupted: Path, train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = interrupted
    provenance = json.loads((folder / "provenance.json").read_text())
    provenance["attempts"][-1] |= {"processor": "abacus", "versions": {"torch": "0.1"}}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    train(report=Report())
    said = capsys.readouterr().out
    assert "processor abacus -> " in said
    assert f"torch 0.1 -> {metadata.version('torch')}" in said


# failures of the training itself


def test_a_loss_that_is_no_number_fails_and_is_not_tried_again(command: Any, train: Any, small: Any) -> None:
    words = ("optimizer.lr=1e30",)
    ended = command(*small, *words)
    assert ended.code == 1
    assert "Failed: the training loss is nan at step" in ended.out
    assert ended.err == ""
    again = train(*words)
    assert not again.trained
    assert again.result["kind"] == "diverged"
    assert again.result["reason"].startswith("the training loss is nan")
    ended = command(*small, *words)
    assert ended.code == 1
    assert "Failed before: the training loss is nan at step" in ended.out
    assert train(*words, "rerun=true").trained


def test_a_crash_is_recorded_and_tried_again(
    train: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], undisturbed: Any
) -> None:
    def crash() -> None:
        raise RuntimeError("boom\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(bitexp.run.fit, "build_trainer", bitexp.run.fit.build_trainer)
        arrange("on_train_batch_start", 6, crash)
        outcome = train(report=Report())
    assert (outcome.status, outcome.result["kind"]) == ("failed", "crash")
    assert outcome.result["reason"] == "RuntimeError: boom"
    assert "Failed: RuntimeError: boom" in capsys.readouterr().out
    assert "in crash" in (outcome.folder / "train.log").read_text()
    again = train()
    assert again.trained
    assert_same(again.folder, undisturbed("plain"))


def limit_memory(spare: int) -> None:
    """Lets this process map `spare` bytes more than it has."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + spare, resource.RLIM_INFINITY))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_out_of_memory_in_training_fails_with_the_reason(command: Any, small: Any, outputs: Path) -> None:
    ended = command(
        *small,
        "model.hidden=[2048,2048]",
        first=partial(arrange, "on_train_batch_start", 1, partial(limit_memory, 10_000_000)),
    )
    assert ended.code == 1, ended.err
    assert "Failed: out of memory (" in ended.out
    assert "smaller data.batch_size" in ended.out
    (file,) = outputs.glob("*/*/result.json")
    assert json.loads(file.read_text())["kind"] == "out_of_memory"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_model_that_does_not_fit_into_memory_is_told(command: Any, small: Any, outputs: Path) -> None:
    ended = command(*small, "model.hidden=[20000,20000]", first=partial(limit_memory, 400_000_000))
    assert ended.code == 1
    assert ended.err.startswith("bitexp: out of memory (")
    assert "Traceback" not in ended.err
    assert not list(outputs.glob("*/*"))


# a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no right to mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> None:
    """Leaves no byte on a file system."""
    with (place / "filler").open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass


@pytest.mark.parametrize(("hook", "count"), [("on_train_batch_start", 3), ("on_validation_start", 2)])
def test_a_full_disk_fails_the_run_and_harms_no_checkpoint(
    hook: str,
    count: int,
    small_disk: Path,
    command: Any,
    train: Any,
    small: Any,
    undisturbed: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BITEXP_OUTPUTS", str(small_disk / "outputs"))
    ended = command(*small, EVERY_STEP, first=partial(arrange, hook, count, partial(fill, small_disk)))
    assert ended.code == 1
    assert "Failed: the disk is full (OSError: [Errno 28] No space left on device" in ended.out
    assert "Earlier checkpoints are intact" in ended.out
    assert "Traceback" not in ended.out + ended.err
    assert "Logging error" not in ended.err
    (checkpoint,) = small_disk.glob("outputs/*/*/checkpoints/last.ckpt")
    assert damage(checkpoint) is None
    ended = command(*small)
    assert ended.code == 1
    assert "the disk is full" in ended.out + ended.err
    assert "Traceback" not in ended.out + ended.err
    assert damage(checkpoint) is None
    (small_disk / "filler").unlink()
    assert_same(train().folder, undisturbed("plain"))


def test_a_file_that_may_not_grow_fails_the_run_likewise(
    command: Any, train: Any, small: Any, outputs: Path, undisturbed: Any
) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))

    ended = command(*small, EVERY_STEP, first=partial(arrange, "on_train_batch_start", 3, limit))
    assert ended.code == 1
    assert "Failed: the disk is full (OSError: [Errno 27] File too large" in ended.out
    (checkpoint,) = outputs.glob("*/*/checkpoints/last.ckpt")
    assert damage(checkpoint) is None
    assert not list(checkpoint.parent.glob(".*"))
    assert_same(train().folder, undisturbed("plain"))


# others


def test_one_failed_job_does_not_stop_the_others(command: Any, small: Any, outputs: Path) -> None:
    ended = command("-m", *small, "optimizer.lr=1e30,-1,0.01", "seed=0,1")
    assert ended.code == 1
    assert "6 jobs: 2 trained, 0 finished before, 4 not finished" in ended.out
    assert "failed: " in ended.out
    lines = [line.strip() for line in ended.out.splitlines() if line.startswith("  failed: ")]
    assert len(lines) == 4
    assert sum("optimizer.lr=1e+30" in line and "the training loss is nan" in line for line in lines) == 2
    assert sum("optimizer.lr=-1 should be greater than 0" in line for line in lines) == 2
    assert "Traceback" not in ended.err
    states = [json.loads(path.read_text())["status"] for path in outputs.glob("*/*/result.json")]
    assert sorted(states) == ["failed", "failed", "finished", "finished"]


def test_a_crash_before_the_run_does_not_stop_the_others(command: Any, small: Any) -> None:
    def break_one() -> None:
        import bitexp.run.road

        build = bitexp.run.road.build

        def build_or_crash(settings: Any) -> Any:
            if settings.seed == 1:
                raise ZeroDivisionError("by seed 1")
            return build(settings)

        bitexp.run.road.build = build_or_crash

    ended = command("-m", *small, "seed=0,1,2", first=break_one)
    assert ended.code == 1
    assert "3 jobs: 2 trained" in ended.out
    assert "ZeroDivisionError: by seed 1" in ended.out
    assert "Traceback" in ended.err


def test_of_two_processes_with_the_same_run_one_leaves(
    start: Any, command: Any, small: Any, tmp_path: Path, undisturbed: Any, train: Any
) -> None:
    ready, go = tmp_path / "ready", tmp_path / "go"

    def wait() -> None:
        ready.touch()
        while not go.exists():
            time.sleep(0.01)

    def first() -> None:
        arrange("on_train_batch_start", 3, wait)
        assert train().status == "finished"

    running = start(first)
    while not ready.exists():
        time.sleep(0.01)
    second = command(*small)
    assert second.code == 2
    assert f"is already being run by process {running.pid} on " in second.err
    assert "leaves it alone" in second.err
    go.touch()
    assert running.wait().code == 0
    again = train()
    assert not again.trained
    assert_same(again.folder, undisturbed("plain"))


def test_missing_data_are_told_before_anything_is_made(command: Any, outputs: Path, tmp_path: Path) -> None:
    ended = command("data=cifar10", f"data.data_dir={tmp_path}/nowhere", "logger=csv")
    assert ended.code == 2
    assert "CIFAR-10 is not here" in ended.err
    assert f"{tmp_path}/nowhere" in ended.err
    assert "data=digits is embedded" in ended.err
    assert "Traceback" not in ended.err
    assert not outputs.exists()
