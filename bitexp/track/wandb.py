"""wandb through Lightning's logger: offline unless asked otherwise, never a prompt, always closed properly."""

from __future__ import annotations

import contextlib
import netrc
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlparse

from bitexp.errors import UserError
from bitexp.settings import Settings
from bitexp.track.folder import RunFolder


def check_login(settings: Settings) -> None:
    """Raises `UserError` where an online run would have to ask for a key."""
    tracking = settings.logger.wandb
    if tracking is None or tracking.mode == "offline":
        return
    if not (os.environ.get("WANDB_API_KEY") or stored_key()):
        raise UserError(
            "logger.wandb.mode=online needs a wandb key and there is none: run `wandb login` once, or "
            "set WANDB_API_KEY, or keep logger.wandb.mode=offline and upload later with `make sync`"
        )


def stored_key() -> bool:
    """Whether `wandb login` has left a key for the server in use."""
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


@contextlib.contextmanager
def tracked_run(
    settings: Settings, folder: RunFolder, config: dict[str, Any]
) -> Iterator[Any | None]:
    """The wandb logger of a run, or None; its run is finished with exit code 1 when the block raises.

    The wandb run carries the run's own id, so that a resumed run continues it. Group: the experiment
    and precision, so that seeds fall together; tags: quantizer and kernel.
    """
    tracking = settings.logger.wandb
    if tracking is None:
        yield None
        return
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ["WANDB_MODE"] = tracking.mode
    logger = WandbLogger(
        save_dir=folder.path,
        offline=tracking.mode == "offline",
        project=tracking.project,
        entity=tracking.entity,
        id=folder.id,
        name=f"{settings.name}-{settings.quantizer.name}-seed{settings.seed}-{folder.id[:4]}",
        group=f"{settings.name}/{settings.quantizer.name}",
        job_type="train",
        tags=[settings.quantizer.name, f"kernel:{settings.kernel.name}", *tracking.tags],
        config=config,
        resume="allow",
        settings=wandb.Settings(silent=True, console="off"),
    )
    code = 1
    try:
        yield logger
        code = 0
    finally:
        wandb.finish(exit_code=code)
