"""A config outside of the entry point: for benchmarks, commands and notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bitexp.common.errors import UserError
from bitexp.config.paths import CONF


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """The resolved config for some overrides, as `python -m bitexp OVERRIDES --cfg job --resolve` shows it.

    Raises:
        UserError: an override that cannot be, in words.
    """
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from bitexp.config.composition_errors import explain

    try:
        config: Any = OmegaConf.to_container(compose_lazily(overrides), resolve=True)
    except (HydraException, OmegaConfBaseException) as problem:
        raise UserError(explain(problem, overrides)) from problem
    return {str(key): value for key, value in config.items()}


def compose_lazily(overrides: Sequence[str], of_hydra: bool = False) -> Any:
    """The same as Hydra gives it, interpolations and all; `of_hydra` with Hydra's own keys."""
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
