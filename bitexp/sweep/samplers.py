"""Optuna's samplers and pruners by name, and one around them that draws the same whatever was resumed."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from bitexp.common.errors import UserError
from bitexp.common.spelling import nearest
from bitexp.sweep import optuna_private

RETRY_OF = "retry_of"
SEQUENCES = ("GridSampler", "QMCSampler")
EXHAUSTIVE = ("BruteForceSampler", "GridSampler")
"""Samplers that try every point of a finite space once."""


def choices(module: ModuleType) -> list[str]:
    """The names of the samplers or pruners that a config may choose."""
    base = module.BaseSampler if module is optuna.samplers else module.BasePruner
    public = {name: getattr(module, name) for name in module.__all__}
    return sorted(
        name
        for name, value in public.items()
        if inspect.isclass(value) and issubclass(value, base) and not inspect.isabstract(value)
    )


def build(module: ModuleType, spec: Mapping[str, Any], key: str) -> Any:
    """`{name: TPESampler, seed: 0}` -> `optuna.samplers.TPESampler(seed=0)`; a nested one likewise.

    Args:
        module: `optuna.samplers` or `optuna.pruners`; key: of the config, for what is said of errors.

    Raises:
        UserError: an unknown name or argument, or a package that is missing.
    """
    arguments = dict(spec)
    name = arguments.pop("name", None)
    known = choices(module)
    if name not in known:
        hint = nearest(str(name), known)
        raise UserError(f"{key}.name={name} is unknown.{hint} Known: {', '.join(known)}")
    cls = getattr(module, name)
    accepted = [p for p in inspect.signature(cls).parameters if p not in ("args", "kwargs")]
    for argument, value in arguments.items():
        if argument not in accepted:
            hint = nearest(argument, accepted)
            raise UserError(
                f"{key}.{argument} is not an argument of {name}.{hint} Known: {', '.join(accepted) or 'none'}"
            )
        if isinstance(value, Mapping) and "name" in value:
            arguments[argument] = build(module, value, f"{key}.{argument}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return cls(**arguments)
    except ImportError as error:
        raise UserError(f"{name} needs a package: {error}. pip install 'bitexp[sweep]'") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: {name} rejects its arguments: {error}") from None


def build_pruner(spec: Mapping[str, Any] | None) -> optuna.pruners.BasePruner:
    """The pruner of a study; one that never prunes where none is chosen."""
    if spec is None:
        return optuna.pruners.NopPruner()
    pruner: optuna.pruners.BasePruner = build(optuna.pruners, spec, "hydra.sweeper.pruner")
    return pruner


class PerCell(BaseSampler):
    """Draws for the n-th cell of a study with a generator seeded by (seed, n).

    So grid, random and QMC draws are the same whatever was killed, resumed or run in parallel; samplers that
    learn from finished trials (TPE and the like) draw alike only from the same history. A retry is the cell
    it repeats and draws nothing.
    """

    def __init__(self, spec: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> None:
        self.spec, self.space = dict(spec), dict(space)
        name = self.spec.get("name")
        if name == "GridSampler" and "search_space" not in self.spec:
            self.spec["search_space"] = {key: values(d) for key, d in space.items()}
        self.cell = 0
        self.inner = self._seeded(0)

    def _seeded(self, cell: int, key: str = "") -> Any:
        spec = reseeded(self.spec, [cell, *key.encode()])
        sampler = build(optuna.samplers, spec, "hydra.sweeper.sampler")
        if isinstance(sampler, optuna.samplers.QMCSampler):
            optuna_private.pin(sampler, cell)  # else a draw that was cut short shifts the others
        return sampler

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        if RETRY_OF in trial.user_attrs:
            return {}
        if self.spec["name"] == "QMCSampler":
            return self.space  # else it draws at random until a trial is complete
        return dict(self.inner.infer_relative_search_space(study, trial))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return dict(self.inner.sample_relative(study, trial, search_space))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        # by key: whoever takes over a trial whose worker died between two draws goes on with the same ones
        sampler = self._seeded(self.cell, param_name)
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.cell = len(cells(optuna_private.all_trials(study)[: trial.number]))
        self.inner = self._seeded(self.cell)
        self.inner.before_trial(study, trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        try:
            self.inner.after_trial(study, trial, state, values)
        except RuntimeError as error:  # an exhaustive sampler is done and calls what only optimize() knows
            if "Study.stop" not in str(error):
                raise


def reseeded(spec: Mapping[str, Any], salt: Sequence[int]) -> dict[str, Any]:
    """The spec of a sampler, and of those within it, with other seeds: far from those of other salts.

    The sequences of QMC and the grid are shared by all cells and keep theirs.
    """
    nested: dict[str, Any] = {
        key: reseeded(value, salt) if isinstance(value, Mapping) and "name" in value else value
        for key, value in spec.items()
    }
    if nested.get("seed") is None or nested.get("name") in SEQUENCES:
        return nested
    words = np.random.SeedSequence([nested["seed"], *salt]).generate_state(1)
    return {**nested, "seed": int(words[0])}


def latest(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that no other repeats: one for each cell, its last word."""
    repeated = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    return [trial for trial in trials if trial.number not in repeated]


def cells(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that are the first at their point: what a budget counts."""
    return [trial for trial in trials if RETRY_OF not in trial.user_attrs]


def values(distribution: BaseDistribution) -> list[Any]:
    """All points of a finite distribution. Raises `UserError` where there is no end of them."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    step = getattr(distribution, "step", None)
    low, high = getattr(distribution, "low", 0), getattr(distribution, "high", 0)
    if step is None or getattr(distribution, "log", False):
        raise UserError(
            f"a grid needs values to choose from, and interval({low}, {high}) is continuous: "
            "write choice(...) or range(...)"
        )
    return [low + step * number for number in range(round((high - low) / step) + 1)]
