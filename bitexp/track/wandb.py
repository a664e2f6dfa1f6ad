"""wandb through Lightning's logger: offline unless asked otherwise, no prompt, closed in every case."""

from __future__ import annotations

import contextlib
import netrc
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlparse

from bitexp.common.console import Report
from bitexp.common.errors import Pruned, UserError
from bitexp.config.schema import Settings
from bitexp.track.folder import RunFolder


def check_login(settings: Settings) -> None:
    """Raises `UserError` where an online run would have to ask for a key."""
    tracking = settings.logger.wandb
    if tracking is None or tracking.mode == "offline":
        return
    if not has_key():
        raise UserError(
            "logger.wandb.mode=online needs a wandb key and there is none: run `wandb login` once, "
            "or set WANDB_API_KEY, or keep logger.wandb.mode=offline and upload later with "
            "`make sync`"
        )


def has_key() -> bool:
    """Whether a run can go online without asking."""
    named = any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"))
    return named or stored_key()


def stored_key() -> bool:
    """Whether `wandb login` has left a key for the server in use."""
    server = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(server) is not None
    except (OSError, netrc.NetrcParseError):
        return False


@contextlib.contextmanager
def tracked_run(settings: Settings, folder: RunFolder, report: Report) -> Iterator[Any | None]:
    """The wandb logger of a run, or None; its run is finished with exit code 1 when the block fails.

    Where wandb itself fails, the run goes on without it and says so.
    """
    tracking = settings.logger.wandb
    if tracking is None:
        yield None
        return
    try:
        logger = start(settings, folder)
    except Exception as error:  # a service that does not come up may raise nearly anything
        report.line(f"wandb could not start, so metrics.csv is all that is kept: {error}")
        yield None
        return
    code = 1
    try:
        yield logger
        code = 0
    except Pruned:  # by a study: nothing went wrong
        code = 0
        raise
    finally:
        try:
            logger.experiment.finish(exit_code=code)
        except Exception as error:
            report.line(f"wandb could not finish: {error}")


def start(settings: Settings, folder: RunFolder) -> Any:
    """Begins a wandb run, and returns Lightning's logger for it.

    It carries the run's own id, so that a resumed run continues it. Group: the experiment and
    precision, so that seeds fall together; tags: quantizer and kernel.
    """
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    tracking = settings.logger.wandb
    assert tracking is not None
    run = wandb.init(
        dir=folder.path,
        mode=tracking.mode,
        project=tracking.project,
        entity=tracking.entity,
        id=folder.id,
        name=f"{settings.name}-{settings.quantizer.name}-seed{settings.seed}-{folder.id[:4]}",
        group=f"{settings.name}/{settings.quantizer.name}",
        job_type="train",
        tags=[settings.quantizer.name, f"kernel:{settings.kernel.name}", *tracking.tags],
        config=settings.model_dump(mode="json"),
        resume="allow",
        reinit="create_new",
        settings=wandb.Settings(silent=True, console="off"),
    )
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(experiment=run, save_dir=folder.path, project=tracking.project)
