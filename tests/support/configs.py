"""Configs: what overrides compose to, and the overrides of short runs."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any, Protocol

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf"
TINY = (
    "logger=csv",
    "callbacks.progress=none",
    "trainer.epochs=2",
    "trainer.train_batches=4",
    "trainer.eval_batches=1",
)
"""Overrides that make any run short."""
SMALL = (*TINY, "model.hidden=[16]")
"""Overrides for a small network on digits that is trained in a quarter of a second."""


class ComposeConfig(Protocol):
    """The resolved config for some overrides."""

    def __call__(self, *overrides: str) -> dict[str, Any]: ...


@functools.cache
def _composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", list(overrides)), resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def compose_config(*overrides: str) -> dict[str, Any]:
    """The resolved config for some overrides; each is composed once, and yours to change."""
    return copy.deepcopy(_composed(overrides))
