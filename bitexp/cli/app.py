"""What surrounds Hydra: where the configs are, errors in words with exit code 2, the exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from bitexp.cli.explain import explain
from bitexp.common.errors import UserError
from bitexp.common.exit import Progress, guarded
from bitexp.config.paths import PACKAGE

PLUGINS = str(PACKAGE / "plugins")
"""Where the namespace `hydra_plugins` begins."""


class PluginConfigs(SearchPathPlugin):
    """Adds the folder `conf` of every package that names itself in the entry point group `bitexp`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for point in entry_points(group="bitexp"):
            package = point.module.partition(".")[0]
            spec = find_spec(package)
            for place in (spec.submodule_search_locations or []) if spec else []:
                if (Path(place) / "conf").is_dir():
                    search_path.append(f"bitexp-{point.name}", f"file://{place}/conf")


def register_plugins() -> None:
    """Lets Hydra find our sweeper and launcher, which it takes from one namespace only, and `PluginConfigs`.

    Launchers that start another interpreter find them by PYTHONPATH.
    """
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if PLUGINS not in path:
        os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, path), str(PACKAGE.parent), PLUGINS])
    if PLUGINS not in sys.path:
        sys.path.append(PLUGINS)
    from hydra_plugins.bitexp.launcher import ProcessLauncher
    from hydra_plugins.bitexp.sweeper import OptunaSweeper

    for plugin in (PluginConfigs, OptunaSweeper, ProcessLauncher):
        Plugins.instance().register(plugin)


def composed(entry: Callable[[], Any]) -> int:
    """Runs the Hydra application and returns the exit code; an error of composition is told in words.

    With HYDRA_FULL_ERROR=1 in the environment, errors keep their tracebacks.
    """
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting with 1

    def told() -> None:
        try:
            entry()
        except (UserError, BrokenPipeError):
            raise
        except Exception as problem:
            if Progress.started or before == "1":
                raise
            # nothing has run, so it is about what was typed or a YAML file
            raise UserError(explain(problem)) from problem

    try:
        return guarded(told)
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before
