"""Where Hydra looks for YAML besides our own folder: in the packages that extend bitexp."""

from __future__ import annotations

from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class PluginConfigs(SearchPathPlugin):
    """Adds the folder `conf` of every package that names itself in the entry point group `bitexp`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for point in entry_points(group="bitexp"):
            package = point.module.partition(".")[0]
            spec = find_spec(package)
            for place in (spec.submodule_search_locations or []) if spec else []:
                if (Path(place) / "conf").is_dir():
                    search_path.append(f"bitexp-{point.name}", f"file://{place}/conf")
