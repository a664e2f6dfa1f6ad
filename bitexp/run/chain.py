"""Sequences of runs: what a run starts from, or learns from, may be another run that is made first.

`start.run` says which: the values in which it differs from this one's config. It takes the same road, in its
own folder under its own id, and is found finished the next time; a chain that was killed goes on where it
was, and several runs that need one source have it trained once.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.common.format import path_text
from bitexp.common.ranks import global_rank
from bitexp.config.compose import composed_alike
from bitexp.config.schema import Settings, SourceChoice, Start, read_settings
from bitexp.config.words import quoted
from bitexp.data import DATA
from bitexp.deploy.description import Description
from bitexp.deploy.sources import Source, Which
from bitexp.quant.layers import quantized_layers
from bitexp.run.attempt import budget, steps_of_source
from bitexp.run.build import build, construct, describe
from bitexp.run.distill import build_losses, teach
from bitexp.run.parts import Parts
from bitexp.run.start import plain_names
from bitexp.track.folder import Busy, RunFolder

OWN = ("start", "distill", "rerun")
"""Keys of which a run that comes first has nothing of the run that it is for: its own values, or none."""

TITLES = {"start": "the run that this one starts from", "distill.teacher": "its teacher"}

PLAIN = re.compile(r"[A-Za-z_][\w./-]*")


class Waiting(UserError):
    """What this run starts from is being made by another process."""

    kind = "waiting"

    def __init__(self, folder: Path) -> None:
        super().__init__(f"{path_text(folder)}, which this run needs, is being made by another process")
        self.folder = folder


class SourceFailed(UserError):
    """What this run starts from has failed."""

    kind = "source"


@dataclass(frozen=True)
class Need:
    """A run that needs another one first.

    Args:
        key: of the choice of a source in its settings, for messages.
        overrides: that were typed for it. take: the road, `bitexp.run.road.run`.
        gives_way: where another process makes what is needed, whether to raise `Waiting` or to wait.
    """

    key: str
    settings: Settings
    overrides: Sequence[str]
    report: Report
    take: Callable[..., Any]
    gives_way: bool

    def made(self, choice: SourceChoice) -> Any:
        """Makes the run that a choice describes, or finds it finished; the `Outcome`, finished or stopped.

        Raises:
            UserError: its config cannot be, or it would not fit.
            Waiting: see `gives_way`.
            SourceFailed: it has failed.
        """
        settings, words = self.planned(choice)
        self.report.detail(f"First comes {TITLES[self.key]}: {settings.quantizer.name}, seed {settings.seed}")
        options: dict[str, Any] = {"gives_way": self.gives_way, "first": self.check(settings)}
        brief, self.report.brief = self.report.brief, True  # where it is finished already
        try:
            outcome = self.take(settings, words, self.report, **options)
        except Busy as busy:
            if self.gives_way:
                raise Waiting(busy.folder) from busy
            self.report.line(f"Another process makes {path_text(busy.folder)}: this one waits for it")
            outcome = self.take(settings, words, self.report, wait=True, **options)
        finally:
            self.report.brief = brief
        result = outcome.result if global_rank() == 0 else wait_for_result(outcome.folder)
        if result["status"] in ("failed", "pruned"):
            place = path_text(outcome.folder)
            raise SourceFailed(f"{place}, {TITLES[self.key]}, {result['status']}: {result['reason']}")
        return outcome

    def planned(self, choice: SourceChoice) -> tuple[Settings, list[str]]:
        """The settings of that run, and the overrides that make it alone."""
        assert choice.run is not None
        run, key = dict(choice.run), f"{self.key}.run"
        if (distill := self.settings.distill) is not None and choice is distill.teacher:
            run |= {} if distill.teacher_seed is None else {"seed": distill.teacher_seed}
        words = [*without(self.overrides, run), *words_of(run)]
        if isinstance(choice, Start) and choice.share is not None:
            steps = steps_of_source(whole_budget(self.settings), choice.share)
            words = [*without(words, {"trainer.max_steps": None}), f"trainer.max_steps={steps}"]
        try:
            settings = settings_of(run, words)
            plain = [word for word in words if not word.startswith("+recipe=")]
            if not set(OWN) & set(run) and plain != words and settings_of(run, plain) == settings:
                words = plain  # the recipe says nothing else than that there is such a run
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
        return settings, words

    def check(self, settings: Settings) -> Callable[[Parts], None]:
        """Tells everything that is wrong with the run that needs it, before anything is trained for it."""
        alone = self.settings.model_copy(update={"distill": None})

        def fits(parts: Parts) -> None:
            planned = Planned(settings, parts)
            built = build(alone, planned if self.key == "start" else None)
            if self.settings.distill is not None:
                build_losses(self.settings.distill, built.task)
            if self.key != "start":
                teach(self.settings, replace(built, teacher=planned), "")

        return fits


def needed(settings: Settings) -> Iterator[tuple[str, SourceChoice]]:
    """The runs that have to come first, by the key that describes them."""
    choices: dict[str, SourceChoice] = {"start": settings.start}
    choices |= {} if settings.distill is None else {"distill.teacher": settings.distill.teacher}
    for key, choice in choices.items():
        if choice.run is not None and choice.source is None:
            yield key, choice


def with_source(settings: Settings, key: str, folder: Path) -> Settings:
    """The settings with the folder of the run that came first, under the key of a choice of a source."""
    section, _, inner = key.partition(".")
    changed = {"source": str(folder)}
    if inner:
        changed = {inner: getattr(getattr(settings, section), inner).model_copy(update=changed)}
    return settings.model_copy(update={section: getattr(settings, section).model_copy(update=changed)})


def wait_for_result(folder: Path) -> dict[str, Any]:
    """What the first process of a distributed run writes when it has tested and packed."""
    while (result := RunFolder(folder).result()) is None:
        time.sleep(0.2)
    return result


def whole_budget(settings: Settings) -> int:
    """Steps of a run and its source together."""
    data = construct("data", DATA, settings.data.name, settings.data.arguments, {"seed": settings.seed})
    data.locate()
    return budget(settings, data)


def settings_of(run: Mapping[str, Any], words: Sequence[str]) -> Settings:
    """The settings of a run that comes first, with a start and a teacher only where it says so."""
    config = composed_alike(words)
    config["start"] = run.get("start") or {}
    config["distill"] = run.get("distill")
    config["rerun"] = run.get("rerun", False)
    return read_settings(config)


def without(words: Sequence[str], run: Mapping[str, Any]) -> list[str]:
    """Overrides but those that `run` replaces, wholly or within, and those that are the other run's own."""
    replaced = [*OWN, *(word.partition("=")[0] for word in words_of(run))]
    keys = [word.lstrip("+~").partition("=")[0] for word in words]
    return [
        word
        for word, key in zip(words, keys, strict=True)
        if not any(key == name or key.startswith(f"{name}.") for name in replaced)
    ]


def words_of(run: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Values as overrides: `{quantizer: full, trainer: {epochs: 3}}` is quantizer=full trainer.epochs=3."""
    words = []
    for key, value in run.items():
        name = f"{prefix}{key}"
        if name in OWN:
            continue
        if isinstance(value, Mapping) and value:
            words += words_of(value, f"{name}.")
        else:
            words.append(f"{name}={text_of(value)}")
    return words


def text_of(value: Any) -> str:
    """A value as an override has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return value if PLAIN.fullmatch(value) else quoted(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{text_of(str(k))}: {text_of(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(text_of, value)) + "]"
    return repr(value)


class Planned(Source):
    """A run that is not made yet: what it will be, to see whether another can start from it."""

    kind = "run"

    def __init__(self, settings: Settings, parts: Parts) -> None:
        super().__init__("the run that comes first")
        self.settings, self.parts = settings, parts
        self.identity = "planned"

    @property
    def description(self) -> Description:
        """What model it will be of."""
        return describe(self.settings, self.parts)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "path": self.text,
            "identity": self.identity,
            "model": self.settings.model.name,
            "model_arguments": self.description.model_arguments,
            "quantizer": self.description.quantizer,
        }

    def weights(self, which: Which = "best", model: str | None = None) -> dict[str, Tensor]:
        state = self.parts.model.state_dict()
        return {name: state[name].detach() for name in plain_names(self.parts.model)}

    def options(self) -> Mapping[str, Any]:
        return {name: layer.options for name, layer in quantized_layers(self.parts.model).items()}

    def model(self, which: Which = "best", kernel: Any = "auto") -> nn.Module:
        return copy.deepcopy(self.parts.model)
