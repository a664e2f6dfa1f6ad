"""wandb: offline unless asked otherwise, no prompt, closed in every case."""

from __future__ import annotations

import netrc
import os
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlparse

from bitexp.common.errors import UserError
from bitexp.common.secrets import redacted
from bitexp.config.schema import Settings
from bitexp.track.folder import RunFolder
from bitexp.track.trackers.tracker import TRACKERS, Tracker, label

if TYPE_CHECKING:
    from pytorch_lightning.loggers import WandbLogger


@TRACKERS.register("wandb")
class Wandb(Tracker):
    """A run there has the run's own id, so that a resumed run continues it.

    Group: the experiment and quantizer, so that seeds fall together; tags: quantizer and kernel.
    """

    def __init__(
        self, *, mode: Literal["offline", "online"], project: str, entity: str | None, tags: list[str]
    ) -> None:
        self.mode, self.project, self.entity, self.tags = mode, project, entity, tags

    def check(self) -> None:
        if self.mode == "online" and not has_key():
            raise UserError(
                "logger.wandb.mode=online needs a wandb key and there is none: run `wandb login` once, "
                "or set WANDB_API_KEY, or keep logger.wandb.mode=offline and upload later with "
                "`make sync`"
            )

    def start(self, settings: Settings, folder: RunFolder) -> WandbLogger:
        import wandb
        from pytorch_lightning.loggers import WandbLogger

        run = wandb.init(
            dir=folder.path,
            mode=self.mode,
            project=self.project,
            entity=self.entity,
            id=folder.id,
            name=label(settings, folder),
            group=f"{settings.name}/{settings.quantizer.name}",
            job_type="train",
            tags=[settings.quantizer.name, f"kernel:{settings.kernel.name}", *redacted(self.tags)],
            config=redacted(settings.model_dump(mode="json")),
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        return WandbLogger(experiment=run, save_dir=folder.path, project=self.project)

    def finish(self, logger: Any, failed: bool) -> None:
        logger.experiment.finish(exit_code=int(failed))


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
