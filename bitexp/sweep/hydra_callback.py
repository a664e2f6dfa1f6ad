"""Around a multirun: secrets leave its words, it gets a folder of its own, and a table at its end."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from bitexp.common.files import create_unused
from bitexp.config.words import quoted


class Summary(Callback):
    """Hydra callback: prints the summary of a multirun from the records of its jobs."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        from bitexp.sweep.secret_words import take_secrets

        take_secrets(config)
        if not is_study(config):
            with contextlib.suppress(OSError):  # what creates files in it next can say it better
                take_folder(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if is_study(config) or config.hydra.launcher.get("wait") is False:
            return  # it has said what its studies found, or its jobs are only begun
        from bitexp.common.console import Report
        from bitexp.report.terminal import summarize

        margin = OmegaConf.select(config, "report.margin")
        summarize(Path(config.hydra.sweep.dir), Report(), margin)


def elsewhere(named: Path, error: OSError) -> Path:
    """A folder for the index of a multirun where its own cannot be written: finished runs are still shown."""
    from bitexp.common.console import Report
    from bitexp.track.folder import UNWRITABLE

    if error.errno not in UNWRITABLE:
        raise error
    folder = Path(tempfile.mkdtemp(prefix="bitexp-sweep-"))
    Report().line(f"{named.parent} cannot be written ({error.strerror}): the index is kept in {folder}")
    return folder


def is_study(config: DictConfig) -> bool:
    """Whether the multirun is one of Optuna's studies, whose folder has the study's name."""
    return "OptunaSweeper" in config.hydra.sweeper._target_


def take_folder(config: DictConfig) -> None:
    """Creates the folder of a multirun; one that began in the same second gets another, as `...-2`."""
    words = config.hydra.overrides.hydra
    if any(word.partition("=")[0] == "hydra.sweep.dir" for word in words):
        return  # it was typed: whoever names a folder twice means the same
    named = Path(config.hydra.sweep.dir)
    try:
        named.parent.mkdir(parents=True, exist_ok=True)
        folder = create_unused(named)
    except OSError as error:
        folder = elsewhere(named, error)
    if folder != named:
        with open_dict(config):
            config.hydra.sweep.dir = str(folder)
            words.append(f"hydra.sweep.dir={quoted(str(folder))}")
