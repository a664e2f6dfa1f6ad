"""What may be said to the sweeper and the process launcher, checked before any work starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from bitexp.common.errors import UserError
from bitexp.config.explain import explain
from bitexp.config.sections import Count, Positive, Section

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
NotBelow0 = Annotated[int, Field(ge=0)]


class SweeperOptions(Section):
    """conf/hydra/sweeper/optuna.yaml."""

    study: Name | None
    storage: str | None
    objectives: Annotated[list[str], Field(min_length=1)]
    directions: list[Literal["minimize", "maximize"]] | None
    sampler: dict[str, Any]
    pruner: dict[str, Any] | None
    n_trials: Count | None
    n_workers: Count
    retries: NotBelow0
    max_failures: NotBelow0
    heartbeat: Positive
    lost_after: Positive
    per: list[str]
    write_tuned: bool
    params: dict[str, Any]


class LauncherOptions(Section):
    """conf/hydra/launcher/process.yaml."""

    n_jobs: Count | None
    gpus: list[int | str] | None
    timeout_minutes: Positive | None
    grace_seconds: Positive

    @property
    def slots(self) -> list[str | None]:
        """What each of the jobs that run at once sees as its GPUs; None leaves the environment as it is."""
        if self.gpus:
            return [str(gpu) for gpu in self.gpus[: self.n_jobs]]
        return [None] * (self.n_jobs or 1)


def read_sweeper(options: Mapping[str, Any]) -> SweeperOptions:
    """Checks `hydra.sweeper`. Raises `UserError` for each wrong value."""
    try:
        read = SweeperOptions.model_validate(dict(options))
    except ValidationError as error:
        raise UserError(explain(error, "hydra.sweeper", options)) from None
    if read.heartbeat >= read.lost_after:
        raise UserError(
            f"hydra.sweeper.heartbeat={read.heartbeat:g} must be less than lost_after={read.lost_after:g}, "
            "otherwise other machines take over trials that are still running"
        )
    return read


def read_launcher(options: Mapping[str, Any]) -> LauncherOptions:
    """Checks `hydra.launcher`. Raises `UserError` for each wrong value."""
    try:
        read = LauncherOptions.model_validate(dict(options))
    except ValidationError as error:
        raise UserError(explain(error, "hydra.launcher", options)) from None
    if read.gpus is not None and (read.n_jobs or 0) > len(read.gpus):
        raise UserError(
            f"hydra.launcher.n_jobs={read.n_jobs} is more than hydra.launcher.gpus has entries: each job at "
            "once needs one (the same GPU may be named twice)"
        )
    return read


def check_folder(hydra: Any) -> None:
    """Raises `UserError` where Hydra is to change the folder in which jobs run."""
    if hydra.job.chdir:
        raise UserError(
            "hydra.job.chdir=true would put every run's outputs into another folder. Runs have folders of "
            "their own, under outputs/ or where the variable BITEXP_OUTPUTS says"
        )
