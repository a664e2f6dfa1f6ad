"""TensorBoard: event files in the run's folder, for `tensorboard --logdir outputs`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitexp.common.secrets import redacted
from bitexp.config.schema import Settings
from bitexp.track.folder import RunFolder
from bitexp.track.trackers.tracker import TRACKERS, Tracker, require

if TYPE_CHECKING:
    from pytorch_lightning.loggers import TensorBoardLogger


@TRACKERS.register("tensorboard")
class TensorBoard(Tracker):
    """A resumed run adds a file to its folder `tensorboard`."""

    def check(self) -> None:
        require("tensorboard", "tensorboard")

    def start(self, settings: Settings, folder: RunFolder) -> TensorBoardLogger:
        from pytorch_lightning.loggers import TensorBoardLogger

        logger = TensorBoardLogger(folder.path, name="", version="tensorboard", default_hp_metric=False)
        logger.log_hyperparams(redacted(settings.model_dump(mode="json")))
        return logger
