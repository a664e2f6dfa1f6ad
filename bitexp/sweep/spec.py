"""A study before it is made: everything that can be wrong with it is found here, before any trial."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from optuna.distributions import BaseDistribution

from bitexp.common.errors import UserError
from bitexp.common.spelling import nearest
from bitexp.config.schema import Settings, read_settings
from bitexp.sweep.definition import Definition, Direction, Limits
from bitexp.sweep.options import SweeperOptions
from bitexp.sweep.samplers import PerCell, build_pruner, values
from bitexp.sweep.tuned import check_tunes
from bitexp.tasks import TASKS
from bitexp.track.folder import outputs

MEASURED = {
    "size/body_bytes": "min",
    "size/total_bytes": "min",
}
"""What a finished run knows besides the measures of its task, and which end of it is the better one."""

Compose = Callable[[Sequence[str]], DictConfig]
"""The config of a job for some overrides. Raises what Hydra raises for words it does not know."""


@dataclass(frozen=True)
class StudySpec:
    """A study that can be made: what it is, where it lives, what becomes of its trials."""

    experiment: str
    name: str
    words: tuple[str, ...]
    """The overrides that set this study apart from others of the same command."""
    definition: Definition
    limits: Limits
    folder: Path
    storage: str

    @property
    def reported(self) -> str:
        """The metric that jobs report while they train; empty where no single one is measured by then."""
        objective, *others = self.definition.objectives
        return "" if others or objective in MEASURED else objective


def read_specs(
    options: SweeperOptions,
    fixed: Sequence[str],
    space: Mapping[str, BaseDistribution],
    compose: Compose,
    sweep: str | None,
) -> list[StudySpec]:
    """The study of a command, or one for each value of the keys in `per`.

    Args:
        fixed: the overrides that all trials share; space: what is drawn for each;
        sweep: the file of `sweeps/` that was chosen, for the names of studies.

    Raises:
        UserError: anything in the command that cannot work.
    """
    drawn = drawn_space(options, fixed, space)
    swept = [name for name in options.per if name in space]
    rows = itertools.product(*(values(space[name]) for name in swept))
    named = [tuple(f"{name}={value}" for name, value in zip(swept, row, strict=True)) for row in rows]
    return [validate(options, fixed, drawn, words, compose, sweep) for words in named]


def drawn_space(
    options: SweeperOptions, fixed: Sequence[str], space: Mapping[str, BaseDistribution]
) -> dict[str, BaseDistribution]:
    """What each study draws: what is swept, but for the keys in `per`."""
    unknown = [name for name in options.per if name not in space and not given(name, fixed)]
    if unknown:
        raise UserError(
            f"hydra.sweeper.per names {', '.join(unknown)}, which is not swept. Swept: {', '.join(space)}"
        )
    drawn = {name: distribution for name, distribution in space.items() if name not in options.per}
    if not drawn:
        raise UserError(
            "nothing to search: name a key with more than one value, as in "
            "'optimizer.lr=tag(log, interval(1e-4, 1e-1))'"
        )
    if options.write_tuned:
        check_tunes(drawn, fixed)
        if len(options.objectives) > 1:
            raise UserError("hydra.sweeper.write_tuned=true needs one objective: several have no best trial")
    return drawn


def validate(
    options: SweeperOptions,
    fixed: Sequence[str],
    space: Mapping[str, BaseDistribution],
    words: tuple[str, ...],
    compose: Compose,
    sweep: str | None,
) -> StudySpec:
    """One study; configs are composed and sampler and pruner built, so that no trial fails by them."""
    fixed = [*fixed, *words]
    settings = compose_all(fixed, space, compose)
    objectives, directions = objectives_of(options, settings)
    if options.pruner is not None and len(objectives) > 1:
        raise UserError("a study of several objectives cannot prune: set hydra.sweeper.pruner=null")
    if options.pruner is not None and objectives[0] in MEASURED:
        raise UserError(f"{objectives[0]} is known at the end only: set hydra.sweeper.pruner=null")
    definition = Definition(fixed, space, objectives, directions, options.sampler, options.pruner)
    PerCell(options.sampler, space)
    build_pruner(options.pruner)
    limits = Limits(
        n_trials=budget(options, definition),
        retries=options.retries,
        max_failures=options.max_failures,
        heartbeat=options.heartbeat,
        lost_after=options.lost_after,
    )
    name = study_name(options.study, words, definition, sweep)
    folder = outputs() / settings.name / "studies"
    storage = options.storage or str(folder / f"{name}.journal")
    return StudySpec(settings.name, name, words, definition, limits, folder / name, storage)


def compose_all(fixed: Sequence[str], space: Mapping[str, BaseDistribution], compose: Compose) -> Settings:
    """The settings of a first trial; every word that may be drawn is composed once: a group may lack it."""
    first = {name: first_value(distribution) for name, distribution in space.items()}
    config = compose([*fixed, *typed(first)])
    for name, distribution in space.items():
        for choice in getattr(distribution, "choices", ())[1:]:
            compose([*fixed, *typed({**first, name: choice})])
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    return read_settings(resolved)


def objectives_of(options: SweeperOptions, settings: Settings) -> tuple[list[str], list[Direction]]:
    """The metrics that a study optimizes, and which way."""
    task = TASKS.get(settings.task.name)
    better = {**task.measures, **MEASURED}
    objectives = [f"val/{task.headline}" if name == "headline" else name for name in options.objectives]
    for metric in objectives:
        if metric not in better:
            known = ", ".join(["headline", *better])
            raise UserError(
                f"hydra.sweeper.objectives: '{metric}' is not measured.{nearest(metric, better)} "
                f"Known: {known}. The test set cannot be an objective: it is used once, at the end"
            )
    towards: dict[str, Direction] = {"min": "minimize", "max": "maximize"}
    directions = options.directions or [towards[better[metric]] for metric in objectives]
    if len(directions) != len(objectives):
        raise UserError("hydra.sweeper.directions needs one entry for each of the objectives")
    return objectives, directions


def budget(options: SweeperOptions, definition: Definition) -> int:
    """How many trials there will be: no more than an exhaustive sampler has points."""
    asked, points = options.n_trials, definition.points()
    if asked is None and points is None:
        raise UserError(
            "hydra.sweeper.n_trials=null needs a sampler that tries each point once "
            f"(BruteForceSampler, GridSampler); {options.sampler.get('name')} needs a number"
        )
    return min(count for count in (asked, points) if count is not None)


def study_name(chosen: str | None, words: Sequence[str], definition: Definition, sweep: str | None) -> str:
    """As the user named it, else after the sweep and what it is: the same command finds the same study."""
    values_of_words = "-".join(word.partition("=")[2] for word in words)
    parts = [chosen, values_of_words] if chosen else [sweep or "study", values_of_words, definition.digest()]
    return "-".join(filter(None, parts))


def given(name: str, fixed: Sequence[str]) -> bool:
    """Whether an override sets that key to one value."""
    return any(word.lstrip("+").partition("=")[0] == name.lstrip("+") for word in fixed)


def typed(params: Mapping[str, Any]) -> list[str]:
    """Drawn parameters as overrides."""
    return [f"{name}={value}" for name, value in params.items()]


def first_value(distribution: BaseDistribution) -> Any:
    """Some value that may be drawn."""
    choices = getattr(distribution, "choices", None)
    return choices[0] if choices else getattr(distribution, "low", None)
