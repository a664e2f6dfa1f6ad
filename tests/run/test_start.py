"""Runs that start from weights: what is loaded, what is refused, what counts in their identity."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bitexp.common.errors import UserError
from bitexp.config.schema import Settings, read_settings
from bitexp.deploy.load import load_run
from bitexp.run.build import build
from bitexp.run.parts import Parts
from bitexp.track.checkpoint_files import load_checkpoint
from bitexp.track.folder import RunFolder
from tests.support.configs import SMALL, TINY, compose_config
from tests.support.foreign_models import save_torchvision, save_transformers
from tests.support.training import Train

DECODER = (*TINY, "task=language_modelling", "data=stdlib", "model=decoder", "data.context=16")
THEIRS = ("model.dim=24", "model.heads=4", "model.kv_heads=2", "model.mlp_ratio=1.5", "model.depth=2")
VIT = (*TINY, "model=vit", "model.dim=16", "model.depth=1")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, loaded: None) -> Path:
    """A finished run in full precision."""
    from tests.support.training import train

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITEXP_OUTPUTS", str(tmp_path_factory.mktemp("source")))
        return train("quantizer=full").folder


def built(*words: str, base: tuple[str, ...] = SMALL) -> Parts:
    return build(read_settings(compose_config(*base, *words)))


def state(folder: Path, name: str = "last") -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_checkpoint(folder / "checkpoints" / f"{name}.ckpt")["state_dict"]
    return {key.removeprefix("model."): tensor for key, tensor in found.items()}


def test_latent_weights_begin_as_those_of_the_run_and_parts_with_them(source: Path) -> None:
    parts = built("quantizer=lsq", f"start.from={source}")
    theirs, ours = state(source), parts.model.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    rows = theirs["layers.0.weight"]
    step = 2 * rows.abs().mean(1) / 7**0.5  # LSQ's initial step size, of the loaded weights
    torch.testing.assert_close(ours["layers.0.parts.weights.step_size"], step)
    assert parts.start is not None
    assert parts.start.record()["tensors"] == len(theirs)


def test_a_start_leaves_the_draws_of_the_seed_alone(source: Path) -> None:
    fresh, started = built(), built(f"start.from={source}", "start.missing=[head]")
    assert not torch.equal(
        fresh.model.state_dict()["layers.0.weight"], started.model.state_dict()["layers.0.weight"]
    )
    other = built(f"start.from={source}", "model.hidden=[24]", "start.missing=[layers,head]")
    alike = built("model.hidden=[24]")
    assert all(
        torch.equal(tensor, alike.model.state_dict()[name])
        for name, tensor in other.model.state_dict().items()
    )


def test_the_first_step_is_that_of_the_loaded_weights(source: Path, train: Train) -> None:
    """The validation before any change of weights is the source's: a learning rate too small to matter."""
    outcome = train("quantizer=full", f"start.from={source}", "optimizer.lr=1e-30")
    model, _ = load_run(source)
    after, _ = load_run(outcome.folder)
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(model(x), after(x))
    card = (outcome.folder / "MODEL_CARD.md").read_text()
    assert f"started from run {source} (best weights): 4 tensors" in card


@pytest.mark.slow
def test_what_a_quantizer_learned_goes_on_where_it_is_the_same(train: Train) -> None:
    first = train("quantizer=lsq_wa")
    parts = built("quantizer=lsq_wa", f"start.from={first.folder}")
    assert all(torch.equal(parts.model.state_dict()[n], t) for n, t in state(first.folder).items())
    assert parts.start is not None
    assert parts.start.learned == ["layers.0"]
    other = built("quantizer=lsq_wa", "quantizer.weights.bits=2", f"start.from={first.folder}")
    assert other.start is not None
    assert other.start.learned == []


def test_gains_of_norms_that_become_those_of_layers_are_not_lost(train: Train) -> None:
    """`full` has a layer norm with gain and shift where `full_norm` has one without: they are folded."""
    first = train("quantizer=full", base=VIT)
    model, _ = load_run(first.folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.rand_like(parameter))
    torch.save(model.state_dict(), first.folder.parent / "v.pth")
    same = built("quantizer=full_norm", f"start.from={first.folder.parent}/v.pth", base=VIT)
    changed = {name for name, t in model.state_dict().items() if name not in same.model.state_dict()}
    assert changed == {
        f"blocks.0.{part}.norm.{own}" for part in ("attn", "mlp") for own in ("weight", "bias")
    }
    qkv = same.model.get_submodule("blocks.0.attn.qkv")
    x = torch.randn(2, 3, 16)
    theirs = model.get_submodule("blocks.0.attn")
    torch.testing.assert_close(qkv(x), theirs.qkv(theirs.norm(x)), rtol=1e-4, atol=1e-4)  # type: ignore[operator]


def id_of(*words: str) -> str:
    from bitexp.run.build import completed

    settings = read_settings(compose_config(*SMALL, *words))
    parts = build(settings)
    return RunFolder.of(completed(settings, parts.quantizer, parts.start), "data").id


def test_a_run_counts_by_its_id_and_a_file_by_its_content(source: Path, tmp_path: Path) -> None:
    without = id_of()
    assert id_of("start.from=null", "distill=null") == without
    run = id_of(f"start.from={source}")
    assert run != without
    moved = tmp_path / "elsewhere" / source.name
    shutil.copytree(source, moved)
    assert id_of(f"start.from={moved}") == run != id_of(f"start.from={moved}", "start.weights=last")
    shutil.copy(source / "packed.safetensors", tmp_path / "a.safetensors")
    shutil.copy(source / "packed.safetensors", tmp_path / "b.safetensors")
    packed = id_of(f"start.from={tmp_path}/a.safetensors")
    assert packed == id_of(f"start.from={tmp_path}/b.safetensors") not in (run, without)


def test_ids_of_before_there_were_starts_are_what_they_were() -> None:
    settings = read_settings(compose_config(*SMALL)).model_dump(mode="json")
    before = {key: value for key, value in settings.items() if key not in ("start", "distill")}
    from bitexp.track.folder import identity

    assert identity(settings, "data") == identity(before, "data")
    assert read_settings({**before}) == read_settings(compose_config(*SMALL))


def test_asked_again_it_is_finished_and_the_config_in_its_folder_is_whole(source: Path, train: Train) -> None:
    words = (f"start.from={source}",)
    first, again = train(*words), train(*words)
    assert (first.trained, again.trained, again.folder) == (True, False, first.folder)
    from bitexp.common.files import read_yaml

    config = read_yaml(first.folder / "config.yaml")
    assert config["start"]["identity"] == source.name
    assert read_settings(config) == Settings.model_validate(config)


def test_calibration_takes_one_fixed_batch_before_the_first_step(source: Path, train: Train) -> None:
    """The step size of activations, seen after no step: `2 mean|x| / sqrt(high)` of the first batch."""
    from bitexp.run.first_batch import calibrate

    parts = built("quantizer=lsq_wa", f"start.from={source}", "quantizer.norm=none")
    calibrate(parts)
    images = next(iter(parts.data.train_dataloader()))[0]
    step = 2 * images.abs().mean() / 7**0.5
    found = parts.model.state_dict()
    torch.testing.assert_close(found["layers.0.parts.activations.step_size"], step)
    assert found["layers.0.parts.activations.begun"]
    again = built("quantizer=lsq_wa", f"start.from={source}", "quantizer.norm=none")
    calibrate(again)
    assert all(torch.equal(tensor, found[name]) for name, tensor in again.model.state_dict().items())


@pytest.mark.parametrize(
    "words",
    [
        ("callbacks.ema_decay=0.9",),
        ("quantizer.lambda_schedule={name: linear, start: 0.0, end: 0.5}",),
        ("quantizer=lsq_wa", "quantizer.stages=[{until: 0.5, activations: {name: lsq, bits: 8}}]"),
        ("trainer.precision=bf16-true",),
    ],
    ids=str,
)
def test_it_goes_with_averages_phases_stages_and_bf16(
    source: Path, train: Train, words: tuple[str, ...]
) -> None:
    outcome = train(f"start.from={source}", *words)
    assert outcome.status == "finished"
    metrics = outcome.result["metrics"]
    assert metrics["test/loss"] == metrics["test_packed/loss"]


@pytest.mark.filterwarnings("ignore")  # of transformers, about packages that it would like to have
@pytest.mark.parametrize(("kind", "more"), [("Llama", ()), ("Qwen2", ("model.qkv_bias=true",))])
def test_a_llama_of_transformers_starts_a_run(tmp_path: Path, kind: str, more: tuple[str, ...]) -> None:
    theirs = save_transformers(tmp_path / "m", kind, vocab_size=256)
    parts = built("quantizer=full", f"start.from={tmp_path}/m", *more, base=(*DECODER, *THEIRS))
    tokens = torch.randint(256, (2, 16))
    torch.testing.assert_close(parts.model.eval()(tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-5)


def test_a_resnet_of_torchvision_starts_a_run(tmp_path: Path) -> None:
    theirs = save_torchvision(tmp_path / "r.pth", "resnet18", num_classes=10)
    words = (f"start.from={tmp_path}/r.pth", "model.stem=imagenet", "quantizer=full")
    base = (*TINY, "model=resnet18", "start.missing=[conv1]")
    parts = built(*words, base=base)  # digits are grey, and its first layer takes colours
    assert parts.start is not None
    assert parts.start.new == ["conv1.weight"]
    x = torch.randn(2, 64, 8, 8)
    assert torch.equal(parts.model.eval().get_submodule("layer1")(x), theirs.get_submodule("layer1")(x))


REFUSED: list[tuple[tuple[str, ...], str]] = [
    (("model.hidden=[24]",), r"layers.0.weight is \[16, 64\] there and \[24, 64\] here.*start.missing=\["),
    (("model.activation=gelu",), r"activation=relu there and gelu here. Use model.activation=relu"),
    (("model.hidden=[16,16]",), r"lacks layers.1.weight.*start.missing=\[|head"),
    (("start.missing=[hed]",), "neither model has such a name. Did you mean 'head"),
    (("+start.identity=0123456789",), "is another than this run began with"),
]


@pytest.mark.parametrize(("words", "sentence"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_a_source_of_another_shape_is_refused_before_anything_is_trained(
    source: Path, outputs: Path, train: Train, words: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        train(f"start.from={source}", *words)
    assert not list(outputs.glob("*/*/config.yaml"))


def test_what_may_differ_is_said(source: Path) -> None:
    assert built(f"start.from={source}", "model.activation=gelu", "start.changed=[activation]").start
    with pytest.raises(UserError, match=r"start\.missing does nothing without a start"):
        built("start.missing=[head]")


def broken(folder: Path) -> None:
    (folder / "checkpoints" / "best.ckpt").write_bytes(b"x")


def unfinished(folder: Path) -> None:
    (folder / "result.json").unlink()


def without_model(folder: Path) -> None:
    (folder / "model.json").write_text("[]")


def of_other_weights(folder: Path) -> None:
    for name in ("best", "last"):
        path = folder / "checkpoints" / f"{name}.ckpt"
        content = load_checkpoint(path)
        content["state_dict"]["model.head.weight"] = torch.zeros(3, 3)
        torch.save(content, path)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (broken, "cannot be used"),
        (unfinished, "has not finished"),
        (without_model, "model.json is missing or damaged"),
        (of_other_weights, r"head.weight has the shape \[3, 3\]"),
    ],
)
def test_a_damaged_run_is_refused(
    source: Path, tmp_path: Path, spoil: Callable[[Path], None], sentence: str
) -> None:
    folder = tmp_path / "x" / source.name
    shutil.copytree(source, folder)
    (folder / "checkpoints" / "best.ckpt").write_bytes((folder / "checkpoints" / "last.ckpt").read_bytes())
    spoil(folder)
    with pytest.raises(UserError, match=sentence):
        built(f"start.from={folder}")


def test_another_vocabulary_is_refused(tmp_path: Path, train: Train) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(9):
        (tmp_path / "texts" / f"{number}.txt").write_text("the quick brown fox jumps over the lazy dog " * 40)
    text = ("data=text", f"data.files=[{tmp_path}/texts]", "data.tokenizer=bpe", "data.vocabulary=300")
    first = train(*text, base=(*DECODER, *THEIRS))
    for file in (tmp_path / "texts").iterdir():
        file.write_text("Zwoelf Boxkaempfer jagen Viktor quer ueber den grossen Sylter Deich " * 40)
    with pytest.raises(UserError, match="has another vocabulary than the data"):
        train(*text, f"start.from={first.folder}", base=(*DECODER, *THEIRS))


def test_a_run_that_resumes_has_the_same_start(source: Path, tmp_path: Path, train: Train) -> None:
    folder = tmp_path / "x" / source.name
    shutil.copytree(source, folder)
    first = train(f"start.from={folder}")
    (first.folder / "result.json").unlink()  # as if it had been killed
    assert train(f"start.from={folder}").trained
    (first.folder / "result.json").unlink()
    for path in (folder / "checkpoints").glob("*.ckpt"):
        content: dict[str, Any] = load_checkpoint(path)
        content["state_dict"]["model.head.weight"] += 1
        torch.save(content, path)
    with pytest.raises(UserError, match="other weights than those that this run began with"):
        train(f"start.from={folder}")
