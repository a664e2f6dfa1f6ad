"""The run: Hydra around it, errors of composition in words with exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from bitexp.cli.commands import command_lines, group_lines
from bitexp.common.errors import UserError, describe_crash
from bitexp.common.exit import Progress, guarded
from bitexp.config.composition_errors import explain
from bitexp.config.paths import CONF, PACKAGE
from bitexp.config.search_path import PluginConfigs
from bitexp.config.words import switches_first

PLUGINS = str(PACKAGE / "plugins")
"""Where the namespace `hydra_plugins` begins."""


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(config: DictConfig) -> Any:
    """One job: a single run, or one of a multirun."""
    from bitexp.cli.job import make

    return make(config)


def run() -> int:
    """`python -m bitexp` without a word; the exit code."""
    sys.argv[1:] = switches_first(sys.argv[1:])
    register_plugins()
    OmegaConf.register_new_resolver("bitexp.commands", command_lines, replace=True)  # of the help in conf/
    OmegaConf.register_new_resolver("bitexp.groups", group_lines, replace=True)
    return with_errors_in_words(job)


def register_plugins() -> None:
    """Lets Hydra find our sweeper and launcher, which it takes from one namespace only, and `PluginConfigs`.

    Launchers that start another interpreter find them by PYTHONPATH.
    """
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if PLUGINS not in path:
        os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, path), str(PACKAGE.parent), PLUGINS])
    if PLUGINS not in sys.path:
        sys.path.append(PLUGINS)
    from hydra_plugins.bitexp.grid_sweeper import GridSweeper
    from hydra_plugins.bitexp.launcher import ProcessLauncher
    from hydra_plugins.bitexp.slurm_launcher import SlurmLauncher
    from hydra_plugins.bitexp.sweeper import OptunaSweeper

    for plugin in (PluginConfigs, GridSweeper, OptunaSweeper, ProcessLauncher, SlurmLauncher):
        Plugins.instance().register(plugin)
    # in the place of Hydra's own, which is what there is without any `hydra/sweeper=`
    grid = {"_target_": f"{GridSweeper.__module__}.GridSweeper", "max_batch_size": None, "params": None}
    ConfigStore.instance().store(group="hydra/sweeper", name="basic", node=grid, provider="bitexp")


def with_errors_in_words(application: Callable[[], Any]) -> int:
    """Runs a Hydra application and returns the exit code; an error of composition is put in words.

    With HYDRA_FULL_ERROR=1 in the environment, errors keep their tracebacks.
    """
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting with 1

    def explained() -> None:
        try:
            application()
        except (UserError, BrokenPipeError):
            raise
        except Exception as problem:
            if Progress.started or before == "1" or describe_crash(problem)["kind"] == "surroundings":
                raise
            # nothing has run, so it is about what was typed or a YAML file
            raise UserError(explain(problem, sys.argv[1:])) from problem

    try:
        return guarded(explained)
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before
