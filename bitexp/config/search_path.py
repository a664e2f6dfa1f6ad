"""Where Hydra looks for YAML besides our own folder: in the packages that extend bitexp."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from bitexp.config.paths import extension_folders


class PluginConfigs(SearchPathPlugin):
    """Adds the folder `conf` of every package that names itself in the entry point group `bitexp`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for name, folder in extension_folders().items():
            search_path.append(f"bitexp-{name}", f"file://{folder}")
