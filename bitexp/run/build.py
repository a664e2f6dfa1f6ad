"""From settings to objects: data (not read yet), model, quantizer, task; and the proof that they fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bitexp.common.errors import UserError
from bitexp.common.randomness import derived_seed
from bitexp.common.registry import Registry
from bitexp.common.signatures import keywords
from bitexp.config.arguments import check_arguments
from bitexp.config.schema import Distill, QuantizerChoice, Settings
from bitexp.config.sections import Named
from bitexp.data import DATA
from bitexp.data.base import Data
from bitexp.deploy.description import Description
from bitexp.deploy.rehearsal import rehearse
from bitexp.deploy.sources import Source
from bitexp.kernels import choose_kernel
from bitexp.models import MODELS
from bitexp.quant import Quantizer
from bitexp.quant.calibration import CALIBRATIONS, Calibration
from bitexp.quant.convert import Conversion, quantize
from bitexp.quant.layers import set_backend
from bitexp.quant.options import REGISTRIES
from bitexp.run.checks import Problems, check, check_match, check_packing, device_type
from bitexp.run.distill import build_losses, completed_losses, find_teacher
from bitexp.run.parts import Parts
from bitexp.run.start import Loaded, carry_on, load
from bitexp.run.start import check as check_start
from bitexp.run.start_checks import check_norm
from bitexp.tasks import TASKS
from bitexp.track.trackers import TRACKERS, Tracker


def build(settings: Settings, source: Source | None = None) -> Parts:
    """Checks every word and argument, then builds: nothing is read from the data set yet.

    Args:
        source: of the weights to start from, where that is at hand; None: what `start.from` names.

    Raises:
        UserError: whatever in the config cannot work, before any training data or run folder is touched.
    """
    problems = Problems()
    with problems:
        kernel, kernel_name, reason = choose_kernel(settings.kernel.name, device_type(settings))
    with problems:
        chosen = settings.quantizer
        quantizer = build_quantizer(chosen)
        check_packing(settings, quantizer)
    with problems:
        check(settings)
    with problems:
        data: Data = construct(
            "data", DATA, settings.data.name, settings.data.arguments, {"seed": settings.seed}
        )
        data.locate()
        facts: dict[str, Any] = data.facts
        check_match(settings, facts)
        torch.manual_seed(derived_seed(settings.seed, "init"))
        model = construct("model", MODELS, settings.model.name, settings.model.arguments, facts)
        start = started(settings, model, facts, source)
    trackers: dict[str, Tracker] = {}
    for name, arguments in settings.logger.items():
        if arguments is not None:
            with problems:
                trackers[name] = construct(f"logger.{name}", TRACKERS, name, arguments)
                trackers[name].check()
    problems.tell()
    calibration: Calibration | None = None
    with problems:
        conversion = convert(model, quantizer, settings, data.example())
        set_backend(model, kernel.backend)
        if start is not None:
            check_norm(settings, start.source)
            check_start(start, model)
            carry_on(start, model)
        if settings.calibrate.name != "none":
            chosen_way = settings.calibrate
            calibration = construct("calibrate", CALIBRATIONS, chosen_way.name, chosen_way.arguments)
            calibration.check(model)
    given = {**facts, "model": model, "optimizer": settings.optimizer}
    with problems:
        task = construct("task", TASKS, settings.task.name, settings.task.arguments, given)
    teacher = None
    if settings.distill is not None:
        with problems:
            teacher = find_teacher(settings.distill)
        with problems:
            build_losses(settings.distill, task)
    problems.tell()
    return Parts(
        data, task, quantizer, conversion, kernel, kernel_name, reason, trackers, start, teacher, calibration
    )


def started(
    settings: Settings, model: nn.Module, facts: Mapping[str, Any], source: Source | None
) -> Loaded | None:
    """The source of a run's weights, with the plain model filled from it; None where it has none."""
    if settings.start.source is None and source is None:
        return None
    return load(settings.start, settings.model.name, model_arguments(settings, facts), model, source)


def model_arguments(settings: Settings, facts: Mapping[str, Any]) -> dict[str, Any]:
    """All that a model is built with: what the config says, and what the data say."""
    return {**settings.model.arguments, **accepted(MODELS.get(settings.model.name), facts)}


def describe(settings: Settings, parts: Parts) -> Description:
    """How to build the model again, with what the data, which are read for it, say about its inputs."""
    chosen, facts = settings.quantizer, parts.data.facts
    return Description(
        model=settings.model.name,
        model_arguments=model_arguments(settings, facts),
        quantizer=parts.quantizer.to_json(),
        include=list(chosen.include),
        exclude=list(chosen.exclude),
        preprocessing=parts.data.preprocessing(),
    )


def build_quantizer(chosen: QuantizerChoice) -> Quantizer:
    """The quantizer of a config.

    Raises:
        UserError: unknown parts or options, values of the wrong type, or what does not go together.
    """
    config = chosen.config
    places = {"quantizer": config}
    places |= {f"quantizer.layers.{number}": rule for number, rule in enumerate(config["layers"])}
    places |= {f"quantizer.stages.{number}": stage for number, stage in enumerate(config["stages"])}
    problems = Problems()
    for place, sections in places.items():
        for key, registry in REGISTRIES.items():
            section = sections.get(key)
            if section is not None and section["name"] != "none":
                options = {name: value for name, value in section.items() if name != "name"}
                with problems:
                    checked = check_arguments(
                        f"{place}.{key}", registry.get(section["name"]), options, given=("weight", "features")
                    )
                    section |= checked
    problems.tell()
    try:
        return Quantizer.of(config)
    except ValueError as error:
        raise UserError(f"quantizer: {error}") from error


def completed(
    settings: Settings, quantizer: Quantizer, start: Loaded | None = None, teacher: Source | None = None
) -> Settings:
    """The settings with every option of parts and losses said, and sources by their identity: what is hashed,
    stored and shown.
    """
    chosen, distill = settings.quantizer, settings.distill
    rest = chosen.model_dump(mode="json", include={"include", "exclude", "lambda_schedule"})
    whole = QuantizerChoice.model_validate({**quantizer.to_json(), **rest})
    known: dict[str, Any] = {"quantizer": whole, "calibrate": completed_calibration(settings.calibrate)}
    if start is not None:
        known["start"] = settings.start.model_copy(update={"identity": start.source.identity})
    if distill is not None and teacher is not None:
        found = distill.teacher.model_copy(update={"identity": teacher.identity})
        losses = completed_losses(distill)
        known["distill"] = Distill.model_validate(
            {**distill.model_dump(), "teacher": found, "losses": losses}
        )
    return settings.model_copy(update=known)


def completed_calibration(chosen: Named) -> Named:
    """The section with all its options said."""
    if chosen.name == "none":
        return chosen
    known = keywords(CALIBRATIONS.get(chosen.name))
    return Named(name=chosen.name, **{n: p.default for n, p in known.items()} | chosen.arguments)


def construct(
    section: str,
    registry: Registry[Any],
    name: str,
    arguments: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
) -> Any:
    """Builds a registered thing from YAML arguments and those facts that its signature names."""
    target = registry.get(name)
    given = accepted(target, facts or {})
    checked = check_arguments(section, target, arguments, given)
    try:
        return target(**given, **checked)
    except ValueError as error:  # it names the argument, the user knows the key
        word = re.match(r"\w*", str(error))
        prefix = f"{section}." if word and word[0] in arguments else ""
        raise UserError(f"{prefix}{error}") from error


def accepted(target: Callable[..., Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that the signature of `target` has a parameter for."""
    return {name: facts[name] for name in keywords(target) if name in facts}


def convert(model: nn.Module, quantizer: Quantizer, settings: Settings, example: Tensor) -> Conversion:
    """Quantizes the model, and tries on noise of the example's shape that it took and can be frozen.

    Raises:
        UserError: the model does not take such a batch.
        ValueError: see `quantize` and `rehearse`.
    """
    if example.is_floating_point():
        example = torch.randn(example.shape, generator=torch.Generator().manual_seed(0))
    chosen = settings.quantizer
    try:
        conversion = quantize(model, quantizer, chosen.include, chosen.exclude, example)
        rehearse(model, lambda model: model(example), settings.packing.layout)
    except RuntimeError as error:
        raise UserError(f"the model cannot take a batch of {list(example.shape)}: {error}") from error
    return conversion
