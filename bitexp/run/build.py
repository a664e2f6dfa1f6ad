"""From settings to objects: data (not read yet), model, quantizer, task; and the proof that they fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from bitexp.common.errors import UserError
from bitexp.common.randomness import derived_seed
from bitexp.common.registry import Registry
from bitexp.config.arguments import check_arguments, keywords
from bitexp.config.schema import Settings
from bitexp.data import DATA
from bitexp.data.base import Data
from bitexp.deploy.description import Description
from bitexp.kernels import choose_kernel
from bitexp.models import MODELS
from bitexp.quant import QUANTIZERS
from bitexp.quant.convert import prove, quantize
from bitexp.quant.layers import set_product
from bitexp.run.checks import Problems, check, check_match, check_packing, device_type
from bitexp.run.parts import Parts
from bitexp.tasks import TASKS
from bitexp.track.trackers import TRACKERS, Tracker


def build(settings: Settings) -> Parts:
    """Checks every word and argument, then builds: nothing is read from the data set yet.

    Raises:
        UserError: whatever in the config cannot work, before any training data or run folder is touched.
    """
    problems = Problems()
    with problems:
        kernel, kernel_name, reason = choose_kernel(settings.kernel.name, device_type(settings))
    with problems:
        chosen = settings.quantizer
        quantizer = construct("quantizer", QUANTIZERS, chosen.name, chosen.arguments)
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
    trackers: dict[str, Tracker] = {}
    for name, arguments in settings.logger.items():
        if arguments is not None:
            with problems:
                trackers[name] = construct(f"logger.{name}", TRACKERS, name, arguments)
                trackers[name].check()
    problems.tell()
    with problems:
        conversion = quantize(model, quantizer, chosen.include, chosen.exclude)
        set_product(model, kernel.product, kernel.fused)
        prove_forward(model, data.example())
    given = {**facts, "model": model, "optimizer": settings.optimizer}
    with problems:
        task = construct("task", TASKS, settings.task.name, settings.task.arguments, given)
    problems.tell()
    return Parts(data, task, quantizer, conversion, kernel, kernel_name, reason, trackers)


def describe(settings: Settings, parts: Parts) -> Description:
    """How to build the model again, with what the data, which are read for it, say about its inputs."""
    chosen, facts = settings.quantizer, parts.data.facts
    return Description(
        model=settings.model.name,
        model_arguments={**settings.model.arguments, **accepted(MODELS.get(settings.model.name), facts)},
        quantizer=chosen.name,
        quantizer_arguments=chosen.arguments,
        include=list(chosen.include),
        exclude=list(chosen.exclude),
        preprocessing=parts.data.preprocessing(),
    )


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


@torch.no_grad()
def prove_forward(model: nn.Module, example: Any) -> None:
    """One forward of an example batch, in eval mode, through every quantized layer."""
    model.eval()
    try:
        prove(model, lambda: model(example))
    except RuntimeError as error:
        shape = list(getattr(example, "shape", []))
        raise UserError(f"the model cannot take a batch of {shape}: {error}") from error
    model.train()
