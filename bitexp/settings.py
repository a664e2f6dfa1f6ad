"""The typed schema of a run's config: what every key may be. Imports no torch, so that a typo costs nothing.

Models, data sets, tasks and quantizers bring keyword arguments of their own beside `name`; those are
checked against the signature of the class (`check_arguments`) before anything is built.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from bitexp.errors import UserError, dotted, nearest, unknown_key

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the config: no other keys, no silent conversion, no change afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Named(Section):
    """A registered thing by name, with its own keyword arguments beside the name."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments that go to the registered class."""
        return dict(self.model_extra or {})


class Model(Named):
    full_precision: list[str]


class LambdaSchedule(Section):
    """How quantization is phased in: lambda from 0 to 1 between two shares of the training."""

    name: Literal["constant", "linear", "sigmoid", "step"]
    start: Share
    end: Share
    reset_optimizer: bool = False


class QuantizerChoice(Named):
    include: list[str]
    exclude: list[str]
    lambda_schedule: LambdaSchedule | None = None


class Adam(Section):
    name: Literal["adamw", "adam"]
    lr: Positive
    weight_decay: NotNegative
    betas: Annotated[list[Beta], Field(min_length=2, max_length=2)]
    eps: Positive
    stochastic_rounding: bool


class Sgd(Section):
    name: Literal["sgd"]
    lr: Positive
    weight_decay: NotNegative
    momentum: Beta
    nesterov: bool
    stochastic_rounding: bool


class Cosine(Section):
    name: Literal["cosine"]
    warmup: Share
    final: Share


class Constant(Section):
    name: Literal["constant"]
    warmup: Share


class TwoStage(Section):
    name: Literal["two_stage"]
    warmup: Share
    switch_at: Share
    second_peak: Share
    second_weight_decay: NotNegative


class Trainer(Section):
    accelerator: Literal["cpu", "gpu", "auto"]
    devices: Count | Literal["auto"]
    strategy: Literal["auto", "ddp"]
    precision: Literal["32", "bf16-mixed", "bf16-true"]
    epochs: Count
    max_steps: Count | None
    accumulate: Count
    gradient_clip: Positive | None
    compile: bool
    threads: Count
    validate_every: Count
    log_every: Count
    train_batches: Count | None
    eval_batches: Count | None


class Wandb(Section):
    mode: Literal["offline", "online"]
    project: str
    entity: str | None
    tags: list[str]


class Logger(Section):
    wandb: Wandb | None


class Checkpoint(Section):
    monitor: str | None
    mode: Literal["max", "min"] | None
    every_steps: Count | None
    every_minutes: Positive


class EarlyStopping(Section):
    monitor: str
    mode: Literal["max", "min"] | None = None
    patience: Count


class Callbacks(Section):
    progress: Literal["auto", "bar", "lines", "none"]
    diagnostics: bool
    checkpoint: Checkpoint
    early_stopping: EarlyStopping | None
    ema_decay: Beta | None


class Kernel(Section):
    name: str


class Settings(Section):
    """The whole config of one run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    packing: Literal["auto", "pack1", "pack2", "pack5", "pack4", "pack8"]
    tuned: bool
    rerun: bool
    task: Named
    data: Named
    model: Model
    quantizer: QuantizerChoice
    kernel: Kernel
    optimizer: Annotated[Adam | Sgd, Field(discriminator="name")]
    scheduler: Annotated[Cosine | Constant | TwoStage, Field(discriminator="name")]
    trainer: Trainer
    logger: Logger
    callbacks: Callbacks


def read_settings(config: Mapping[str, Any]) -> Settings:
    """Checks a resolved config. Raises `UserError` naming each wrong key, its value and what is allowed."""
    try:
        return Settings.model_validate(dict(config))
    except ValidationError as error:
        raise UserError(explain(error, "", config)) from None


def check_arguments(
    section: str, target: Callable[..., Any], values: Mapping[str, Any], given: Collection[str] = ()
) -> dict[str, Any]:
    """Checks keyword arguments from YAML against the annotations of `target`.

    Args:
        given: parameters that the caller provides; YAML may not.

    Returns:
        the values in the types of the annotations: `1` where a float belongs becomes `1.0`.

    Raises:
        UserError: unknown or missing keys and values of the wrong type, all of them.
    """
    known = keywords(target)
    parameters = [name for name in known if name not in given]
    problems = [
        f"the key '{section}.{name}' is missing"
        for name in parameters
        if name not in values and known[name].default is inspect.Parameter.empty
    ]
    checked = {}
    for key, value in values.items():
        if key not in parameters:
            near = [section, *(f"{section}.{name}" for name in parameters)]
            problems.append(unknown_key(f"{section}.{key}", near))
            continue
        try:
            checked[key] = TypeAdapter(known[key].annotation).validate_python(value, strict=True)
        except ValidationError as error:
            problems.append(explain(error, f"{section}.{key}", value))
    if problems:
        raise UserError("\n".join(problems))
    return checked


def keywords(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a function or class by name, their annotations evaluated.

    Where a constructor hands `**options` on, those of the class above it count as well.
    """
    inits = [vars(cls)["__init__"] for cls in getattr(target, "__mro__", ()) if "__init__" in vars(cls)]
    found: dict[str, inspect.Parameter] = {}
    for function in inits or [target]:
        parameters = list(inspect.signature(function).parameters.values())[bool(inits) :]
        hints = get_type_hints(function, include_extras=True)
        for parameter in parameters:
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                annotated = parameter.replace(annotation=hints.get(parameter.name, Any))
                found.setdefault(parameter.name, annotated)
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return found


def explain(error: ValidationError, prefix: str, config: Any) -> str:
    """The errors of pydantic, one line each: key=value, and what is allowed."""
    items = [(located(item["loc"], config, prefix), item) for item in error.errors()]
    extra = {where for where, item in items if item["type"] == "extra_forbidden"}
    known = [name for name in dotted(config) if name not in extra] if isinstance(config, Mapping) else []
    said: dict[str, list[str]] = {}
    for where, item in items:
        if item["type"] == "extra_forbidden":
            said[unknown_key(where, known)] = []
        elif item["type"] == "missing":
            said[f"the key '{where}' is missing"] = []
        elif item["type"] == "union_tag_invalid":
            word, words = item["ctx"]["tag"], re.findall(r"\w+", item["ctx"]["expected_tags"])
            hint = nearest(word, words)
            said[f"{where}.name={word} is unknown.{hint} Known: {', '.join(words)}"] = []
        else:
            said.setdefault(f"{where}={shown(item['input'])}", []).append(allowed(item["type"], item["msg"]))
    return "\n".join(f"{subject} {' or '.join(rules)}".strip() for subject, rules in said.items())


def allowed(kind: str, message: str) -> str:
    """What a value should be, from pydantic's words."""
    if kind == "model_type":
        return "should be a section of keys"
    if kind == "string_pattern_mismatch":
        return "should be letters, digits, '_', '-' and '.'"
    return re.sub(r"^(Input|List|String) ", "", message).replace(" after validation", "")


def located(loc: tuple[int | str, ...], config: Any, prefix: str) -> str:
    """The dotted key of an error; pydantic also names the member of a union that it tried."""
    names, node = [prefix] if prefix else [], config
    for number, part in enumerate(loc):
        inside = part in node if isinstance(node, Mapping) else isinstance(part, int)
        if inside:
            node = node[part]
        if inside or (number == len(loc) - 1 and isinstance(node, Mapping)):
            names.append(str(part))
    return ".".join(names)


def shown(value: Any) -> str:
    """A value as one would type it."""
    return "null" if value is None else str(value).lower() if value in (True, False) else str(value)
