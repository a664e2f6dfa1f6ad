"""What is checked before anything is built: combinations that cannot run or would do nothing."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from bitexp.common.errors import UserError
from bitexp.common.signatures import keywords
from bitexp.common.spelling import nearest
from bitexp.config.optimization import Cage, Dqt
from bitexp.config.schema import LambdaSchedule, Settings, Start
from bitexp.deploy.packing import choose_layout
from bitexp.models import MODELS
from bitexp.quant.quantizer import Quantizer
from bitexp.run.parts import Parts
from bitexp.tasks import TASKS
from bitexp.track.provenance import processor

FACTS = ("shape", "classes", "vocabulary", "context")
"""All that a data set may tell models and tasks about itself."""


def check_match(settings: Settings, facts: Mapping[str, Any]) -> None:
    """Raises `UserError` where the model or the task needs to know what the data do not tell."""
    problems = []
    for section, registry, name in (
        ("model", MODELS, settings.model.name),
        ("task", TASKS, settings.task.name),
    ):
        needed = [
            fact
            for fact, parameter in keywords(registry.get(name)).items()
            if fact in FACTS and fact not in facts and parameter.default is inspect.Parameter.empty
        ]
        if needed:
            problems.append(
                f"{section}={name} and data={settings.data.name} cannot be combined: the {section} needs "
                f"{' and '.join(needed)}, but these data provide {' and '.join(facts)}"
            )
    if problems:
        raise UserError("\n".join(problems))


def check(settings: Settings) -> None:
    """Combinations that cannot run, that would do nothing, or not what they say."""
    trainer, schedule = settings.trainer, settings.quantizer.lambda_schedule
    check_latents(settings)
    check_start(settings.start)
    check_steps(settings)
    if schedule is not None and schedule.start > schedule.end:
        raise UserError(
            f"quantizer.lambda_schedule.start={schedule.start} is larger than its "
            f"end={schedule.end}; give an end from {schedule.start} to 1.0"
        )
    if schedule is not None and schedule.name != "constant":
        check_phasing(settings, schedule)
    elif schedule is not None and schedule.reset_optimizer:
        raise UserError(
            "quantizer.lambda_schedule.reset_optimizer=true forgets the moments where quantization begins, "
            "and with name=constant it begins at once; use name=step or linear"
        )
    checkpoint = settings.callbacks.checkpoint
    if checkpoint.mode is not None and checkpoint.monitor is None:
        raise UserError(
            f"callbacks.checkpoint.mode={checkpoint.mode} does nothing without a metric: name one with "
            "callbacks.checkpoint.monitor=val/loss, or leave it out"
        )
    if settings.quantizer.stages and not settings.quantizer.quantizes:
        raise UserError(
            f"quantizer.stages says what is quantized otherwise at first, and "
            f"quantizer={settings.quantizer.name} quantizes nothing; leave it out or choose another quantizer"
        )
    known = TASKS.get(settings.task.name).measures
    for key, monitor in monitors(settings).items():
        if monitor not in known:
            raise UserError(
                f"{key}={monitor} is not measured.{nearest(monitor, known)} Known: {', '.join(known)}"
            )
    stopping = settings.callbacks.early_stopping
    if stopping is not None and trainer.validate_every > trainer.epochs:
        raise UserError(
            f"callbacks.early_stopping.monitor={stopping.monitor} is never measured before the end: "
            f"trainer.validate_every={trainer.validate_every} and trainer.epochs={trainer.epochs}; validate "
            "within the epochs"
        )
    if trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("trainer.accelerator=gpu, but torch finds no GPU here; use trainer=cpu")


def check_start(start: Start) -> None:
    """Raises `UserError` for options of a start that there is not."""
    if start.given:
        return
    default = Start()
    idle = [key for key in Start.model_fields if getattr(start, key) != getattr(default, key)]
    if idle:
        raise UserError(
            f"start.{idle[0]} does nothing without a start: name one with start.from=RUN, or leave it out"
        )


def check_steps(settings: Settings) -> None:
    """Raises `UserError` where a run without steps, or a calibration, could not do what is said."""
    calibrates = settings.calibrate.name != "none"
    if not calibrates and settings.calibrate.arguments:
        key = next(iter(settings.calibrate.arguments))
        raise UserError(f"calibrate.{key} does nothing with calibrate=none; choose one, or leave it out")
    if settings.trainer.max_steps != 0:
        if calibrates:
            raise UserError(
                f"calibrate={settings.calibrate.name} is for networks that are not trained any more, and "
                "training would undo it; it needs trainer.max_steps=0, as +recipe=ptq has it"
            )
        return
    if settings.trainer.devices != 1:
        raise UserError(
            f"trainer.max_steps=0 trains nothing, and trainer.devices={settings.trainer.devices} would share "
            "that out; use trainer.devices=1"
        )


def check_latents(settings: Settings) -> None:
    """Raises `UserError` where an optimizer's way with bf16 latents and the precision do not go together."""
    optimizer, precision = settings.optimizer, settings.trainer.precision
    ways = [way for way in ("stochastic_rounding", "kahan") if getattr(optimizer, way, False)]
    if ways and precision != "bf16-true":
        raise UserError(
            f"optimizer.{ways[0]}=true rounds bf16 latents and there are none with "
            f"trainer.precision={precision}; use trainer.precision=bf16-true"
        )
    if len(ways) > 1:
        raise UserError(
            "optimizer.kahan=true keeps what rounding to the nearest takes away; use it without "
            "stochastic_rounding"
        )
    if isinstance(optimizer, Cage | Dqt) and precision == "bf16-true":
        raise UserError(
            f"optimizer={optimizer.name} needs fp32 weights to tell how far they are from their levels; use "
            "trainer.precision=32 or bf16-mixed"
        )
    weights = settings.quantizer.weights.name
    others = [rule.weights.name for rule in settings.quantizer.layers if rule.weights is not None]
    wrong = sorted({weights, *others} - {"fixed", "none"})
    if isinstance(optimizer, Dqt) and (wrong or weights == "none"):
        raise UserError(
            "optimizer=dqt moves weights from level to level, which needs a scale that does not follow them, "
            f"and there are weights={(wrong or ['none'])[0]}; use quantizer=dqt"
        )


def check_phasing(settings: Settings, schedule: LambdaSchedule) -> None:
    """Raises `UserError` where there is nothing to phase in, or no training before it."""
    if not settings.quantizer.quantizes:
        raise UserError(
            f"quantizer.lambda_schedule.name={schedule.name} phases quantization in, and "
            f"quantizer={settings.quantizer.name} quantizes nothing; leave it out or choose another quantizer"
        )
    if schedule.reset_optimizer and (schedule.end if schedule.name == "step" else schedule.start) == 0:
        raise UserError(
            "quantizer.lambda_schedule.reset_optimizer=true would forget nothing: quantization begins with "
            "the training; let it begin later (start, or end with name=step)"
        )


def monitors(settings: Settings) -> dict[str, str]:
    """The metrics that decide something, by the key that names them."""
    stopping = settings.callbacks.early_stopping
    named = {
        "callbacks.checkpoint.monitor": settings.callbacks.checkpoint.monitor,
        "callbacks.early_stopping.monitor": None if stopping is None else stopping.monitor,
    }
    return {key: monitor for key, monitor in named.items() if monitor is not None}


def check_validation(settings: Settings, parts: Parts, pruned_by: str | None) -> None:
    """Raises `UserError` where a metric decides something and no data are held out to measure it.

    Args:
        pruned_by: the metric that a study asks for while the run trains.
    """
    deciding = monitors(settings)
    if pruned_by is not None:
        deciding["hydra.sweeper.objectives"] = pruned_by
    if parts.data.sizes["val"] == 0:
        for key, monitor in deciding.items():
            raise UserError(
                f"{key}={monitor} needs validation data and there are none; set data.val_size=0.1"
            )


def check_packing(settings: Settings, quantizer: Quantizer) -> None:
    """Raises `UserError` where the packed file could not hold what the quantizer gives."""
    for options in quantizer.variants():
        if options.levels is None:
            continue
        layout = settings.packing.layout
        try:
            choose_layout(layout, options.levels)
        except ValueError as error:
            raise UserError(
                f"packing.layout={layout}: {error}; packing.layout=auto takes the densest that holds them"
            ) from error


def device_type(settings: Settings) -> str:
    """cpu or cuda, by the trainer's accelerator."""
    wanted = settings.trainer.accelerator
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def device_name(settings: Settings) -> str:
    """The processor or GPU that trains, by its name."""
    return torch.cuda.get_device_name(0) if device_type(settings) == "cuda" else processor()


class Problems:
    """Collects what is wrong, so that all of it is reported at once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> bool:
        if not isinstance(error, ValueError | UserError):
            return False
        self.found.append(str(error))
        return True

    def tell(self) -> None:
        """Raises `UserError` with all that was found, if anything."""
        if self.found:
            raise UserError("\n".join(dict.fromkeys(self.found)))
