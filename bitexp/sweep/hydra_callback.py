"""Around a multirun: secrets leave its words; at its end the table of what it found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class Summary(Callback):
    """Hydra callback: prints the summary of a multirun from the records of its jobs."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        from bitexp.sweep.secret_words import take_secrets

        take_secrets(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if "OptunaSweeper" in config.hydra.sweeper._target_:
            return  # it has said what its studies found
        from bitexp.common.console import Report
        from bitexp.report.terminal import summarize

        summarize(Path(config.hydra.sweep.dir), Report())
