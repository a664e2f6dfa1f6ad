"""What surrounds Hydra: where the configs are, errors in words with exit code 2, the exit code."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bitexp.console import error
from bitexp.errors import UserError, dotted, nearest, unknown_key

PACKAGE = Path(__file__).resolve().parent
CONF = PACKAGE / "_conf" if (PACKAGE / "_conf").is_dir() else PACKAGE.parent / "conf"
"""The configs: inside the package where it is installed, beside it in a checkout."""
PLUGINS = str(PACKAGE / "plugins")
"""Where the namespace `hydra_plugins` begins."""


class Progress:
    """How far this process got, and the worst exit code of its jobs, with which `main` leaves."""

    started = False
    worst = 0

    @classmethod
    def note(cls, code: int) -> None:
        cls.worst = max(cls.worst, code)


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


def guarded(entry: Callable[[], Any]) -> int:
    """Runs the Hydra application and returns the exit code; what the user can mend is told in words.

    With HYDRA_FULL_ERROR=1 in the environment, errors keep their tracebacks.
    """
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting with 1
    Progress.started, Progress.worst = False, 0
    try:
        entry()
    except KeyboardInterrupt:
        return Progress.worst or 130
    except BrokenPipeError:  # as in `python -m bitexp --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UserError as problem:
        error(str(problem))
        return 2
    except Exception as problem:
        if Progress.started or before == "1":
            raise
        error(explain(problem))  # nothing has run, so it is about what was typed or a YAML file
        return 2
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before
    return Progress.worst


def explain(problem: Exception) -> str:
    """A composition error in words, with the known words and the nearest match."""
    if isinstance(problem, MissingConfigException) and problem.missing_cfg_file:
        group, _, word = problem.missing_cfg_file.rpartition("/")
        options = [str(option) for option in problem.options or []]
        if options:
            return f"unknown {group} '{word}'.{nearest(word, options)} Known: {', '.join(options)}"
    if isinstance(problem, OverrideParseException):
        why = [line for line in lines(problem.message) if not line.startswith(("See", "Error"))]
        return (
            f"'{problem.override}' cannot be read: {', '.join(why)}. Write key=value, "
            "and quote what the shell or YAML would take apart: 'model.hidden=[64, 64]'"
        )
    text = "\n".join(str(part) for part in (problem, problem.__cause__) if part is not None)
    if match := re.search(r"Could not override '([^']+)'", text):
        return not_there(match[1].lstrip("+"), text)
    if match := re.search(r"Could not append to config. An item is already at '([^']+)'", text):
        return f"'{match[1]}' is there already: write {match[1]}=..., without the +"
    if match := re.search(r"Could not delete from config. '([^']+)' does not exist", text):
        return unknown_key(match[1], known_keys())
    if match := re.search(r"full_key: (\S+)", text):
        return f"{match[1]}: {lines(text)[0]}"
    return "\n".join(dict.fromkeys(lines(text))) or type(problem).__name__


def lines(text: str) -> list[str]:
    """The lines of a text that are not empty."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def not_there(key: str, text: str) -> str:
    """The error for an override of a group or a key that the config does not have."""
    if "No match in the defaults list" in text:
        typed = next((word for word in sys.argv[1:] if word.startswith(f"{key}=")), f"{key}=...")
        return f"'{key}' is not in the defaults list: write +{typed} to add it"
    return unknown_key(key, known_keys(of_hydra=key.startswith("hydra.")))


def known_keys(of_hydra: bool = False) -> list[str]:
    """Every key of the config as it is without overrides, and of the groups that were chosen.

    Args:
        of_hydra: Hydra's own keys as well, which a user seldom means.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    choices = [word for word in sys.argv[1:] if is_choice(word)]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            config = compose("config", choices, return_hydra_config=of_hydra)
        except (HydraException, OmegaConfBaseException):
            config = compose("config", return_hydra_config=of_hydra)
    plain = OmegaConf.to_container(config, resolve=False)
    return dotted(plain) if isinstance(plain, dict) else []


def is_choice(word: str) -> bool:
    """Whether an argument chooses one option of a config group."""
    group = word.lstrip("+").partition("=")[0]
    return "=" in word and "," not in word and (CONF / group).is_dir()
