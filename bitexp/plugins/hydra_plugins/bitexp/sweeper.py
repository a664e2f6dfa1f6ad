"""`hydra/sweeper=optuna`: the trials of a study as the jobs of a multirun."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    OverrideType,
    RangeSweep,
    Transformer,
)
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.bitexp.hydra_private import problem_of, start_ray
from hydra_plugins.bitexp.launcher import plain
from omegaconf import DictConfig, open_dict


class OptunaSweeper(Sweeper):
    """Reads the space from Hydra's own override grammar and hands the work to `bitexp.sweep`."""

    config: DictConfig
    hydra_context: HydraContext
    launcher: Any
    workers: int
    """Trials at once."""

    def __init__(self, **options: Any) -> None:
        self.raw = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from bitexp.sweep.command import make_studies
        from bitexp.sweep.each import over_lists
        from bitexp.sweep.options import check_folder, read_sweeper

        check_folder(self.config.hydra)
        chosen = read_sweeper(plain(self.raw))
        words = [f"{key}={value}" for key, value in chosen.params.items()] + arguments
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = {override.key_or_group: override for override in parser.parse_overrides(words)}
        fixed = [str(o.input_line) for o in overrides.values() if not o.is_sweep_override()]
        space = {key(o): distribution(o) for o in overrides.values() if o.is_sweep_override()}
        space = over_lists(space, fixed, self.compose)
        self.first_of_ray()
        self.workers = 1 if self.basic else chosen.n_workers
        if hasattr(self.launcher, "serve"):
            self.workers = self.launcher.serve(chosen.n_workers)
        try:
            return make_studies(self, chosen, fixed, space)
        finally:
            if hasattr(self.launcher, "warm_parent"):
                self.launcher.warm_parent.close()

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The config of a job. Raises what Hydra raises for words it does not know."""
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            del config["hydra"]
        return config

    def prepare_jobs(self, folder: Path, variables: dict[str, str]) -> None:
        """Names the folder of the index and sets environment variables, for all jobs from here on."""
        from bitexp.config.words import quoted

        words = [f"hydra.sweep.dir={quoted(str(folder))}"]
        words += [f"++hydra.job.env_set.{name}={quoted(value)}" for name, value in variables.items()]
        keys = [word.partition("=")[0] for word in words]
        with open_dict(self.config):
            self.config.hydra.sweep.dir = str(folder)
            known = self.config.hydra.overrides.hydra
            kept = [word for word in known if word.partition("=")[0] not in keys]
            self.config.hydra.overrides.hydra = kept + words

    def launch(self, number: int, overrides: Sequence[str]) -> str | None:
        """Makes one job. Returns what the launcher says of it where it failed without a record."""
        job = self.launcher.launch([list(overrides)], initial_job_idx=number)[0]
        if job.status == JobStatus.COMPLETED:
            return None
        problem = problem_of(job)
        return f"{type(problem).__name__}: {problem}"

    @property
    def basic(self) -> bool:
        """Whether jobs run in this very process, one at a time."""
        return type(self.launcher).__name__ == "BasicLauncher"

    def halt(self) -> None:
        """Asks the jobs under way to stop, where the launcher can."""
        if hasattr(self.launcher, "stop"):
            self.launcher.stop()

    def first_of_ray(self) -> None:
        """Starts Ray once, before several threads do so at the same time."""
        if type(self.launcher).__name__ == "RayLauncher":
            start_ray(self.launcher.ray_cfg.init)


def key(override: Override) -> str:
    """The part before the equals sign, with its + where it has one."""
    return str(override.get_key_element())


def distribution(override: Override) -> Any:
    """What Optuna draws for one swept key, from Hydra's grammar.

    `interval(a, b)` draws between two numbers, `int(interval(a, b))` whole ones, `tag(log, ...)` on a
    logarithmic scale; `range(a, b, step)` and `choice(...)` or `a,b,c` draw one of what they list.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    from bitexp.common.errors import UserError

    name, value = key(override), override.value()
    if override.type == OverrideType.DEL:
        raise UserError(f"'{override.input_line}' cannot sweep over a key that it deletes")
    tags: set[str] = getattr(value, "tags", set())
    if unknown := tags - {"log"}:
        raise UserError(f"{name}: tag {', '.join(sorted(unknown))} is unknown. Known: log")
    log = "log" in tags
    try:
        if isinstance(value, IntervalSweep):
            assert value.start is not None
            assert value.end is not None
            if isinstance(value.start, int) and isinstance(value.end, int):
                return IntDistribution(value.start, value.end, log=log)
            return FloatDistribution(float(value.start), float(value.end), log=log)
        if isinstance(value, RangeSweep) and not value.shuffle:
            points = sorted(value.range())
            if log:
                raise UserError(f"{name}: range() cannot be logarithmic; use tag(log, interval(...))")
            if not points:
                raise UserError(f"'{override.input_line}' has no values")
            step = abs(value.step)
            if all(isinstance(point, int) for point in points):
                return IntDistribution(points[0], points[-1], step=int(step))
            low, high = (float(f"{end:.12g}") for end in (points[0], points[-1]))  # 0.3, not 0.1 + 0.1 + 0.1
            return FloatDistribution(low, high, step=float(step))
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None
    assert isinstance(value, ChoiceSweep | RangeSweep) or override.is_discrete_sweep()
    choices: list[Any] = list(override.sweep_iterator(transformer=Transformer.encode))
    return CategoricalDistribution(choices)
