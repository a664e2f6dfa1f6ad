"""From the section `distill` to a task that learns from a teacher; and the proof that the two fit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bitexp.common.errors import UserError
from bitexp.common.format import size
from bitexp.common.signatures import keywords
from bitexp.config.arguments import check_arguments
from bitexp.config.schema import Distill, Settings
from bitexp.data.base import Data
from bitexp.data.cache import cache_folder
from bitexp.deploy.frozen import FrozenLayer
from bitexp.deploy.sources import Source, find_source
from bitexp.kernels import Kernel
from bitexp.kernels.reference import Reference
from bitexp.quant.layers import set_backend
from bitexp.run.parts import Parts
from bitexp.run.teacher_checks import KEY, check_images, check_tokenizer
from bitexp.tasks import Task
from bitexp.tasks.distillation import LOSSES, DistillationLoss, Distiller
from bitexp.track.folder import UNIMPORTANT

OWN = "task"
"""The word among the losses that stands for the task's own."""


def find_teacher(chosen: Distill) -> Source:
    """Where the teacher is.

    Raises:
        UserError: there is none, or another than this run has learned from.
    """
    named = chosen.teacher
    source = find_source(str(named.source), KEY)
    if named.identity not in (None, source.identity):
        raise UserError(
            f"{KEY}={named.source} is another than this run learned from: {source.identity}, and it was "
            f"{named.identity}"
        )
    return source


def build_losses(chosen: Distill, task: Task) -> dict[str, DistillationLoss]:
    """The terms that have a weight, by name.

    Raises:
        UserError: unknown terms or arguments, or none that looks at the teacher.
    """
    losses = {}
    for name, term in completed_losses(chosen).items():
        if name == OWN:
            continue
        if name in task.objectives:
            raise UserError(f"distill.losses.{name} and task.objectives.{name} would be logged as one")
        losses[name] = LOSSES.get(name)(**term)
    if not losses:
        raise UserError(
            "the teacher is looked at by no loss; give one a weight, such as "
            f"distill.losses.logits.weight=1 (there are {', '.join(LOSSES.names())})"
        )
    return losses


def completed_losses(chosen: Distill) -> dict[str, dict[str, Any]]:
    """The task's own weight, and every term that has one, with all of its options.

    Raises:
        UserError: unknown terms or arguments.
    """
    found: dict[str, dict[str, Any]] = {OWN: {"weight": 0.0}}
    for name, term in chosen.losses.items():
        if name == OWN:
            if options := term.model_extra:
                raise UserError(f"unknown key 'distill.losses.{OWN}.{next(iter(options))}'")
            found[name] = {"weight": term.weight}
            continue
        target = LOSSES.get(name)
        given = check_arguments(f"distill.losses.{name}", target, term.arguments)
        if term.weight:
            defaults = {key: parameter.default for key, parameter in keywords(target).items()}
            found[name] = {**defaults, **given}
    return found


def teach(settings: Settings, parts: Parts, fingerprint: str) -> None:
    """Gives the task its teacher, where it has one; both are tried out with a blank batch.

    Args:
        fingerprint: of the data.

    Raises:
        UserError: teacher, student and data do not go together.
    """
    chosen, source, data, task = settings.distill, parts.teacher, parts.data, parts.task
    if chosen is None or source is None:
        return
    losses = build_losses(chosen, task)
    check_tokenizer(source, data)
    own = completed_losses(chosen)[OWN]["weight"]
    with torch.random.fork_rng():  # the student's draws do not depend on who teaches
        teacher = source.model(chosen.teacher.weights, parts.kernel)
    cache = cached_by(settings, data, task, source, fingerprint) if chosen.cache else None
    try:
        distiller = Distiller(task.model, teacher, losses, own, chosen.precision, cache)
        with by_torch(parts.kernel, task.model, teacher):
            distiller.check(data.example())
    except ValueError as error:
        raise UserError(f"{KEY}={source.text}: {error}") from error
    check_images(source, data)
    if cache is not None:
        check_room(distiller, data)
    task.distiller = distiller


@contextmanager
def by_torch(kernel: Kernel, *models: nn.Module) -> Iterator[None]:
    """Where a kernel needs a GPU, models on the CPU multiply without it as long as the `with` block lasts."""
    if kernel.unavailable("cpu") is None:
        yield
        return

    def use(other: Kernel) -> None:
        for model in models:
            set_backend(model, other.backend)
            for layer in (module for module in model.modules() if isinstance(module, FrozenLayer)):
                layer.use(other)

    use(Reference())
    try:
        yield
    finally:
        use(kernel)


def cached_by(
    settings: Settings, data: Data, task: Task, source: Source, fingerprint: str
) -> Mapping[str, Any]:
    """All that the teacher's logits for the training part depend on, beside the samples.

    Raises:
        UserError: they cannot be kept.
    """
    chosen = settings.distill
    assert chosen is not None
    reasons = {
        f"data={settings.data.name} gives other samples in every epoch": not data.repeats,
        f"task={settings.task.name} mixes images": task.augments,
    }
    for name, loss in build_losses(chosen, task).items():
        reasons[f"distill.losses.{name} looks at more than logits"] = bool(loss.parts)
    for reason in (reason for reason, holds in reasons.items() if holds):
        raise UserError(f"distill.cache=true keeps one row of logits for each sample, and {reason}")
    unimportant = {key.removeprefix("data.") for key in UNIMPORTANT}
    arguments = {key: value for key, value in settings.data.arguments.items() if key not in unimportant}
    return {
        "teacher": [source.identity, chosen.teacher.weights],
        "data": [settings.data.name, arguments, fingerprint],
    }


def teacher_record(settings: Settings, parts: Parts) -> dict[str, Any]:
    """Who teaches, for provenance: compared where the run is resumed. Empty where nobody does."""
    if parts.teacher is None or parts.task.distiller is None or settings.distill is None:
        return {}
    described = parts.teacher.describe()
    known = {key: described[key] for key in ("kind", "path", "identity", "model")}
    known |= {"quantizer": (described.get("quantizer") or {}).get("name")}
    weights = settings.distill.teacher.weights
    return {**known, "weights": weights, "digest": parts.task.distiller.teacher.digest}


def check_room(distiller: Distiller, data: Data) -> None:
    """Raises `UserError` where the disk has no room for the logits."""
    needed, folder = cache_bytes(distiller, data), cache_folder()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if needed > (free := shutil.disk_usage(there).free):
        raise UserError(
            f"distill.cache=true needs {size(needed)} in {folder}, where {size(free)} are free; BITEXP_CACHE "
            "names another folder, distill.cache=false needs none"
        )


def cache_bytes(distiller: Distiller, data: Data) -> int:
    """What the kept logits of the training part take."""
    return 4 * data.sizes["train"] * distiller.outputs
