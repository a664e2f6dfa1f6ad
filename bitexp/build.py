"""From settings to objects: data (not read yet), model, quantizer, task; and the proof that they fit."""

from __future__ import annotations

import bitexp.compat  # noqa: F401

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from bitexp.callbacks.randomness import derived_seed
from bitexp.data import DATA
from bitexp.errors import UserError
from bitexp.kernels import choose_kernel
from bitexp.kernels.registry import Kernel
from bitexp.models import MODELS
from bitexp.packed import Description
from bitexp.quant import QUANTIZERS
from bitexp.quant.convert import Conversion, prove, quantize
from bitexp.quant.linear import quantized_layers
from bitexp.quant.registry import Quantizer
from bitexp.registry import Registry
from bitexp.settings import Settings, check_arguments
from bitexp.tasks import TASKS, Task
from bitexp.track.wandb import check_login


@dataclass
class Parts:
    """What a run is made of."""

    data: pl.LightningDataModule
    task: Task
    quantizer: Quantizer
    conversion: Conversion
    description: Description
    kernel: Kernel
    kernel_name: str
    kernel_reason: str

    @property
    def model(self) -> nn.Module:
        """The network, with its quantized layers."""
        return self.task.model


def build(settings: Settings) -> Parts:
    """Checks every word and argument, then builds: nothing is read from the data set yet.

    Raises:
        UserError: whatever in the config cannot work, before any training data or run folder is touched.
    """
    with told():
        kernel, kernel_name, reason = choose_kernel(settings.kernel.name, device_type(settings))
        quantizer = construct("quantizer", QUANTIZERS, settings.quantizer.name, settings.quantizer.arguments)
        check(settings, quantizer)
        data = construct("data", DATA, settings.data.name, settings.data.arguments, {"seed": settings.seed})
        data.locate()
        facts: dict[str, Any] = data.facts
        torch.manual_seed(derived_seed(settings.seed, "init"))
        arguments = {**settings.model.arguments, **accepted(MODELS.get(settings.model.name), facts)}
        model = construct("model", MODELS, settings.model.name, settings.model.arguments, facts)
        conversion = quantize(model, quantizer, settings.quantizer.include, settings.quantizer.exclude)
        for layer in quantized_layers(model).values():
            layer.product = kernel.product
        prove_forward(model, data.example())
        task = construct(
            "task",
            TASKS,
            settings.task.name,
            settings.task.arguments,
            {**facts, "model": model, "optimizer": settings.optimizer},
        )
        description = Description(
            model=settings.model.name,
            model_arguments=arguments,
            quantizer=settings.quantizer.name,
            quantizer_arguments=settings.quantizer.arguments,
            include=list(settings.quantizer.include),
            exclude=list(settings.quantizer.exclude),
            preprocessing={},
        )
    return Parts(data, task, quantizer, conversion, description, kernel, kernel_name, reason)


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
    check_arguments(section, target, arguments, given)
    return target(**given, **arguments)


def accepted(target: Callable[..., Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that the signature of `target` has a parameter for."""
    return {name: facts[name] for name in inspect.signature(target).parameters if name in facts}


def check(settings: Settings, quantizer: Quantizer) -> None:
    """Combinations that would do nothing, or not what they say."""
    bf16 = settings.trainer.precision == "bf16-true"
    if settings.optimizer.stochastic_rounding and not bf16:
        raise UserError(
            "optimizer.stochastic_rounding=true rounds bf16 latents and there are none with "
            f"trainer.precision={settings.trainer.precision}; use trainer.precision=bf16-true"
        )
    schedule = settings.quantizer.lambda_schedule
    if schedule is not None and schedule.start > schedule.end:
        raise UserError(
            f"quantizer.lambda_schedule starts at {schedule.start} and ends at {schedule.end}: "
            "start must not be larger"
        )
    if settings.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("trainer.accelerator=gpu, and torch finds no GPU here; use trainer=cpu")
    check_login(settings)


def device_type(settings: Settings) -> str:
    """cpu or cuda, by the trainer's accelerator."""
    wanted = settings.trainer.accelerator
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


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


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Turns the core's ValueErrors into something the user is told without a traceback."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error
