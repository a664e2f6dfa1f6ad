"""A config as Hydra composes it, outside of Hydra's own entry point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bitexp.config.paths import CONF


def compose_lazily(overrides: Sequence[str], of_hydra: bool = False) -> Any:
    """The config for some overrides, interpolations and all; `of_hydra` with Hydra's own keys."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins

    from bitexp.config.search_path import PluginConfigs

    Plugins.instance().register(PluginConfigs)
    of_job = GlobalHydra.instance().hydra  # composing inside of a job, which keeps its own
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", list(overrides), return_hydra_config=of_hydra)
    finally:
        GlobalHydra.instance().hydra = of_job


def compose_as_job(overrides: Sequence[str]) -> Any:
    """The config for some overrides with Hydra's keys, from where the configs of this process's job are."""
    from hydra import compose
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    if not (GlobalHydra.instance().is_initialized() and HydraConfig.initialized()):
        return compose_lazily(overrides, of_hydra=True)
    return compose(HydraConfig.get().job.config_name, list(overrides), return_hydra_config=True)
