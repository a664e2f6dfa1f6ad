"""Runs that need another run first: one road, a folder each, found finished the next time."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from bitexp.common.errors import UserError
from bitexp.common.files import read_json
from bitexp.config.schema import read_settings
from bitexp.run.chain import SourceFailed, Waiting, text_of, without, words_of
from bitexp.track.checkpoint_files import load_checkpoint
from bitexp.track.folder import RunFolder
from tests.support.configs import SMALL, compose_config
from tests.support.processes import Command, Start
from tests.support.training import Train

CHAIN = ("start.run={quantizer: full}", "start.share=0.75")


def runs(outputs: Path) -> dict[str, Path]:
    """The folders of all runs, by their quantizer."""
    found = {}
    for file in outputs.glob("*/*/config.yaml"):
        found[str(yaml.safe_load(file.read_text())["quantizer"]["name"])] = file.parent
    return found


def result(folder: Path) -> dict[str, Any]:
    return dict(read_json(folder / "result.json") or {})


def test_the_first_run_is_one_of_its_own_and_gets_its_share(outputs: Path, train: Train) -> None:
    outcome = train(*CHAIN)
    folders = runs(outputs)
    assert folders.keys() == {"full", "ternary_mean"}
    steps = {name: result(folder)["steps"] for name, folder in folders.items()}
    assert steps == {"full": 6, "ternary_mean": 2}  # of two epochs with four batches
    alone = train("quantizer=full", "trainer.max_steps=6")
    assert (alone.trained, alone.folder) == (False, folders["full"])
    start = yaml.safe_load((outcome.folder / "config.yaml").read_text())["start"]
    assert start["identity"] == folders["full"].name
    assert start["from"] == str(folders["full"])
    assert yaml.safe_load((folders["full"] / "overrides.yaml").read_text())[-2:] == [
        "quantizer=full",
        "trainer.max_steps=6",
    ]


def test_it_is_the_same_as_both_by_hand(train: Train) -> None:
    first = train("quantizer=full", "trainer.max_steps=6")
    by_hand = train(f"start.from={first.folder}", "start.share=0.75")
    assert train(*CHAIN).folder == by_hand.folder


def test_asked_again_nothing_is_trained(train: Train) -> None:
    first, again = train(*CHAIN), train(*CHAIN)
    assert (first.trained, again.trained, again.folder) == (True, False, first.folder)


def test_rerun_repeats_the_run_itself_and_not_what_it_starts_from(outputs: Path, train: Train) -> None:
    train(*CHAIN)
    assert train(*CHAIN, "rerun=true").trained
    assert len(list(outputs.glob("*/.replaced/*"))) == 1
    assert len(RunFolder(runs(outputs)["full"]).attempts()) == 1


@pytest.mark.slow
def test_other_quantizers_share_it_and_other_seeds_do_not(outputs: Path, train: Train) -> None:
    for words in (("seed=0",), ("quantizer=binary",), ("seed=1",)):
        train(*CHAIN, *words)
    kinds = [yaml.safe_load(f.read_text())["quantizer"]["name"] for f in outputs.glob("*/*/config.yaml")]
    assert sorted(kinds) == ["binary", "full", "full", "ternary_mean", "ternary_mean"]


@pytest.mark.slow
def test_a_chain_of_three(outputs: Path, train: Train) -> None:
    train("quantizer=binary", "start.run={quantizer: ternary_mean, start: {run: {quantizer: full}}}")
    folders = runs(outputs)
    assert folders.keys() == {"full", "ternary_mean", "binary"}
    middle = yaml.safe_load((folders["ternary_mean"] / "config.yaml").read_text())
    assert middle["start"]["identity"] == folders["full"].name


def test_a_recipe_that_says_nothing_else_is_left_out_of_what_it_starts_from(
    outputs: Path, train: Train
) -> None:
    train("+recipe=qat_from_full", "start.share=0.5")
    words = yaml.safe_load((runs(outputs)["full"] / "overrides.yaml").read_text())
    assert "+recipe=qat_from_full" not in words
    assert words[-1] == "trainer.max_steps=4"


REFUSED = [
    (
        ("start.run={quantizer: full, model: {hidden: [17]}}",),
        r"the run of start.run does not fit.*\[17, 64\] there",
    ),
    (("start.run={quantizer: fall}",), r"start.run: .*Did you mean 'full'"),
    (("start.run={model: {hiden: [16]}}",), r"start.run: unknown key 'model.hiden'"),
    ((*CHAIN, "start.missing=[hed]"), "neither model has such a name"),
    ((*CHAIN, "optimizer.lr=-1"), "optimizer.lr"),
    ((*CHAIN, "trainer.max_steps=1"), "divides the steps of trainer, and there is 1"),
    (("start.share=0.5",), "start.share does nothing without a start"),
]


@pytest.mark.parametrize(("words", "sentence"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_is_wrong_is_told_before_anything_is_trained(
    outputs: Path, train: Train, words: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        train(*words)
    assert not runs(outputs)


def test_where_the_first_run_fails_the_other_says_so(outputs: Path, train: Train) -> None:
    with pytest.raises(SourceFailed, match=r"the run that this one starts from, failed: .*nan|inf"):
        train("start.run={quantizer: full, optimizer: {lr: 1.0e+30}}")
    assert runs(outputs).keys() == {"full"}


def test_who_can_do_better_leaves_while_another_makes_it(outputs: Path, train: Train) -> None:
    from bitexp.run.road import run

    finished = train(*CHAIN)
    full = runs(outputs)["full"]
    (full / "result.json").unlink()
    (finished.folder / "result.json").unlink()
    lock = full.parent / ".locks" / f"{full.name}.lock"
    with FileLock(lock), pytest.raises(Waiting, match="is being made by another process") as left:
        run(compose_config(*SMALL, *CHAIN), [*SMALL, *CHAIN], gives_way=True)
    assert left.value.folder == full


def test_a_chain_that_was_killed_goes_on_where_it_was(outputs: Path, train: Train, start: Start) -> None:
    """Killed within the first run, then within the second; the weights, and the ranges of activations that
    one batch gave before the first step, are those of an undisturbed chain.
    """
    words = (*CHAIN, "quantizer=lsq_wa", "trainer.train_batches=8", "callbacks.checkpoint.every_steps=1")
    undisturbed = train(*words, "name=undisturbed")
    expected = load_checkpoint(undisturbed.folder / "checkpoints" / "last.ckpt")["state_dict"]

    def killed_at(step: int, quantizer: str) -> None:
        from bitexp.train.checkpoints import Checkpoints

        before = Checkpoints.on_train_batch_end

        def end(self: Any, trainer: Any, *rest: Any) -> None:
            before(self, trainer, *rest)
            quantized = any("parts" in name for name, _ in trainer.lightning_module.named_modules())
            if trainer.global_step == step and quantized == (quantizer != "full"):
                os.kill(os.getpid(), signal.SIGKILL)

        Checkpoints.on_train_batch_end = end  # type: ignore[method-assign]
        train(*words)

    for step, quantizer in ((5, "full"), (2, "lsq_wa")):
        ended = start(lambda step=step, quantizer=quantizer: killed_at(step, quantizer)).wait()  # type: ignore[misc]
        assert ended.code == -signal.SIGKILL, ended
    outcome = train(*words)
    assert outcome.status == "finished"
    found = load_checkpoint(outcome.folder / "checkpoints" / "last.ckpt")["state_dict"]
    assert found.keys() == expected.keys()
    assert all(bool((found[name] == tensor).all()) for name, tensor in expected.items())
    assert len(RunFolder(outcome.folder).attempts()) == 2


@pytest.mark.slow
def test_jobs_in_processes_have_what_they_share_trained_once(outputs: Path, command: Command) -> None:
    swept = ("quantizer=ternary_mean,binary,ternary_median", "seed=0,1")
    slots = ("hydra/launcher=process", "hydra.launcher.n_jobs=3")
    ended = command("-m", *SMALL, "+recipe=qat_from_full", *swept, *slots)
    assert ended.code == 0, ended.out + ended.err
    assert "6 jobs: 6 trained, 0 finished before, 0 not finished" in ended.out
    configs = [yaml.safe_load(file.read_text()) for file in outputs.glob("*/*/config.yaml")]
    assert sorted(c["seed"] for c in configs if c["quantizer"]["name"] == "full") == [0, 1]
    attempts = [len(RunFolder(file.parent).attempts()) for file in outputs.glob("*/*/result.json")]
    assert attempts == [1] * 8


def test_words_of_a_run_are_those_that_one_would_type() -> None:
    run = {
        "quantizer": "full",
        "trainer": {"epochs": 3},
        "name": "a b",
        "start": {"run": {"seed": 1}},
        "x": None,
    }
    assert words_of(run) == ["quantizer=full", "trainer.epochs=3", "name='a b'", "x=null"]
    assert text_of({"match": ["*.q"], "bits": 4, "on": True}) == "{match: ['*.q'], bits: 4, on: true}"
    typed = [
        "quantizer=lsq",
        "quantizer.weights.bits=2",
        "+distill.x=1",
        "start.run={}",
        "trainer.epochs=9",
        "seed=1",
    ]
    assert without(typed, run) == ["seed=1"]
    config = read_settings(
        compose_config(*words_of({"quantizer": {"layers": [{"match": "head", "norm": "rms"}]}}))
    )
    assert config.quantizer.layers[0].match == ["head"]
