"""The typed schema of a run's config: what every key may be. Imports no torch, so that a typo costs nothing.

Models, data sets, tasks and quantizers bring keyword arguments of their own beside `name`; those are
checked against the signature of the class (`check_arguments`) before anything is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)  # fmt: skip

from bitexp.common.errors import UserError
from bitexp.config.explain import explain
from bitexp.config.optimization import Constant, Cosine, Optimizer, TwoStage
from bitexp.config.sections import (
    Beta,
    Count,
    Label,
    Named,
    NotNegative,
    NotNegativeCount,
    Positive,
    Section,
    Share,
)


class Model(Named):
    full_precision: list[str]


class LambdaSchedule(Section):
    """How quantization is phased in: lambda from 0 to 1 between two shares of the training."""

    name: Literal["constant", "linear", "sigmoid", "step"]
    start: Share
    end: Share
    reset_optimizer: bool = False


def section(value: Any) -> Any:
    """A bare word stands for a section with that name, null for none."""
    return {"name": "none" if value is None else value} if value is None or isinstance(value, str) else value


Part = Annotated[Named, BeforeValidator(section)]
"""A part of a quantizer: `{name: int, bits: 4}`, or the bare word `int`."""


class Parts(Section):
    """What may be chosen for a layer; what is left out stays as it is elsewhere."""

    weights: Part | None = None
    activations: Part | None = None
    transform: Part | None = None
    sparsifier: Part | None = None
    estimator: Part | None = None
    norm: Literal["none", "rms", "layer"] | None = None
    bias: Literal["plain", "scaled"] | None = None
    gradients: Part | None = None
    output_norm: Literal["none", "rms", "layer"] | None = None

    @model_serializer(mode="wrap")
    def said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what was left out, for which null would be another word than none."""
        return {key: value for key, value in handler(self).items() if key in self.model_fields_set}


def patterns(value: Any) -> Any:
    """A pattern stands for a list of one."""
    return [value] if isinstance(value, str) else value


class LayerRule(Parts):
    """Other choices for the layers that a pattern matches."""

    match: Annotated[list[str], BeforeValidator(patterns), Field(min_length=1)]
    optional: bool = False
    """Whether the model may have no such layer."""


class QuantizerStage(Parts):
    """Other choices until a share of the training."""

    until: Annotated[float, Field(gt=0, lt=1)]


class QuantizerChoice(Section):
    name: Label
    weights: Part
    activations: Part
    transform: Part
    sparsifier: Part
    estimator: Part
    norm: Literal["none", "rms", "layer"]
    bias: Literal["plain", "scaled"]
    gradients: Part = Named(name="none")
    output_norm: Literal["none", "rms", "layer"] = "none"
    layers: list[LayerRule]
    stages: list[QuantizerStage]
    include: list[str]
    exclude: list[str]
    lambda_schedule: LambdaSchedule | None = None

    @property
    def quantizes(self) -> bool:
        """Whether any layer may get quantized weights."""
        chosen = [self.weights, *(rule.weights for rule in self.layers)]
        return any(part is not None and part.name != "none" for part in chosen)

    @property
    def config(self) -> dict[str, Any]:
        """The section as YAML has it, without what was left out."""
        return self.model_dump(mode="json", exclude_unset=True)


class Trainer(Section):
    accelerator: Literal["cpu", "gpu", "auto"]
    devices: Count | Literal["auto"]
    strategy: Literal["auto", "ddp"]
    precision: Literal["32", "bf16-mixed", "bf16-true"]
    epochs: Count
    max_steps: NotNegativeCount | None
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
    requeue: bool = False
    keep: Literal["all", "best", "none"] = "all"


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


class Packing(Section):
    """How weights lie in the packed file. A word alone is the layout, as it was until 2026-12.

    With embeddings as floats it is written as that word, so that runs keep their ids.
    """

    layout: Literal[
        "auto", "pack1", "pack5", "pack2", "pack3", "pack4", "pack8in5", "pack4in3", "pack8in7", "pack8"
    ]  # fmt: skip
    embeddings: Literal["float", "int8"]

    @model_validator(mode="before")
    @classmethod
    def of_word(cls, value: Any) -> Any:
        return {"layout": value, "embeddings": "float"} if isinstance(value, str) else value

    @model_serializer(mode="plain")
    def as_before(self) -> Any:
        word = self.embeddings == "float"
        return self.layout if word else {"layout": self.layout, "embeddings": self.embeddings}


class SourceChoice(Section):
    """Where weights come from: a source by its text, or another run of this experiment, which is made first.

    Such a run has the config of this one but for the values that `run` gives, and neither a start nor a
    teacher unless `run` says so. The road puts its folder into `from`, and into `identity` what was found.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, serialize_by_alias=True)
    source: Annotated[str | None, Field(alias="from")] = None
    run: dict[str, Any] | None = None
    weights: Literal["best", "last"] = "best"
    identity: str | None = None

    @property
    def given(self) -> bool:
        """Whether there is any."""
        return self.source is not None or self.run is not None


class Start(SourceChoice):
    """What a run begins with. The default is random weights."""

    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    missing: list[str] = Field(default_factory=list)
    unused: list[str] = Field(default_factory=list)
    changed: list[str] = Field(default_factory=list)


def weighted(value: Any) -> Any:
    """A number stands for a term with that weight."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"weight": float(value)} if number else value


class Term(Section):
    """A term of a loss: its weight, with the keyword arguments of its class beside it."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    weight: NotNegative

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments that go to the registered class."""
        return {"weight": self.weight, **(self.model_extra or {})}


def from_text(value: Any) -> Any:
    """A bare word stands for a source of that text."""
    return {"from": value} if value is None or isinstance(value, str) else value


class Distill(Section):
    """What is learned from a teacher beside the task itself.

    A run that is made to teach has the seed of its student, unless `teacher_seed` says otherwise.
    """

    teacher: Annotated[SourceChoice, BeforeValidator(from_text)]
    teacher_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    losses: dict[str, Annotated[Term, BeforeValidator(weighted)]] = Field(
        default_factory=lambda: {"task": Term(weight=1.0), "logits": Term(weight=1.0)}
    )
    precision: Literal["32", "bf16"] = "32"
    cache: bool = False


def with_teacher(section: Distill | None) -> Distill | None:
    """A section that names no teacher is none."""
    return section if section is not None and section.teacher.given else None


class ReportOptions(Section):
    """What the report makes of the runs of an experiment. None of it is part of their identity."""

    margin: Positive | None = None


class Settings(Section):
    """The whole config of one run."""

    name: Label
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    start: Start = Start()
    packing: Packing
    tuned: bool
    rerun: bool | Literal["older"]
    task: Named
    data: Named
    model: Model
    quantizer: QuantizerChoice
    calibrate: Part = Named(name="none")
    distill: Annotated[Distill | None, AfterValidator(with_teacher)] = None
    kernel: Kernel
    optimizer: Annotated[Optimizer, Field(discriminator="name")]
    scheduler: Annotated[Cosine | Constant | TwoStage, Field(discriminator="name")]
    trainer: Trainer
    logger: dict[str, dict[str, Any] | None] = Field(default_factory=dict)
    """The arguments of trackers, by their names; None switches one off."""
    callbacks: Callbacks
    report: ReportOptions = ReportOptions()


def read_settings(config: Mapping[str, Any]) -> Settings:
    """Checks a resolved config. Raises `UserError` naming each wrong key, its value and what is allowed."""
    try:
        return Settings.model_validate(dict(config))
    except ValidationError as error:
        raise UserError(explain(error, "", config, Settings)) from None
