"""The typed schema of a run's config: what every key may be. Imports no torch, so that a typo costs nothing.

Models, data sets, tasks and quantizers bring keyword arguments of their own beside `name`; those are
checked against the signature of the class (`check_arguments`) before anything is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bitexp.common.errors import UserError
from bitexp.config.explain import explain

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
    logger: dict[str, dict[str, Any] | None] = {}
    """The arguments of trackers, by their names; None switches one off."""
    callbacks: Callbacks


def read_settings(config: Mapping[str, Any]) -> Settings:
    """Checks a resolved config. Raises `UserError` naming each wrong key, its value and what is allowed."""
    try:
        return Settings.model_validate(dict(config))
    except ValidationError as error:
        raise UserError(explain(error, "", config)) from None
