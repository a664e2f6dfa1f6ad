"""What surrounds Hydra: where the configs are, errors in words with exit code 2, and the final exit code."""

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
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bitexp.console import error
from bitexp.errors import UserError, nearest

PACKAGE = Path(__file__).resolve().parent
CONF = PACKAGE / "_conf" if (PACKAGE / "_conf").is_dir() else PACKAGE.parent / "conf"
"""The configs: inside the package where it is installed, beside it in a checkout."""


class ExitCode:
    """The worst that happened in this process: jobs note theirs, `main` leaves with it."""

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


def register_search_path() -> None:
    """Makes Hydra ask `PluginConfigs`."""
    Plugins.instance().register(PluginConfigs)


def guarded(entry: Callable[[], Any]) -> int:
    """Runs the Hydra application and returns the exit code; what the user can mend is told in words.

    With HYDRA_FULL_ERROR=1 in the environment, errors keep their tracebacks.
    """
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting with 1
    try:
        entry()
    except UserError as problem:
        error(str(problem))
        return 2
    except (HydraException, OmegaConfBaseException) as problem:
        if full:
            raise
        error(explain(problem))
        return 2
    except KeyboardInterrupt:
        return 130
    return ExitCode.worst


def explain(problem: Exception) -> str:
    """A composition error in words, with the known words and the nearest match."""
    if isinstance(problem, MissingConfigException) and problem.missing_cfg_file:
        group, _, word = problem.missing_cfg_file.rpartition("/")
        options = [str(option) for option in problem.options or []]
        if options:
            return f"unknown {group} '{word}'.{nearest(word, options)} Known: {', '.join(options)}"
    causes = [str(problem)]
    if problem.__cause__ is not None:
        causes.append(str(problem.__cause__))
    text = "\n".join(causes)
    if match := re.search(r"Could not override '([^']+)'", text):
        return unknown_key(match[1].removeprefix("+"), text)
    if match := re.search(r"full_key: (\S+)", text):
        return f"{match[1]}: {text.splitlines()[0]}"
    lines = [line for line in text.splitlines() if line.strip()]
    if isinstance(problem, ConfigCompositionException) and len(lines) > 1:
        return "\n".join(dict.fromkeys(lines))
    return lines[0] if lines else type(problem).__name__


def unknown_key(key: str, text: str) -> str:
    """The error for an override of a key that the config does not have."""
    if "No match in the defaults list" in text:
        return (
            f"'{key}' is not in the defaults list; to add a choice write +{key}=..., "
            "as in: python -m bitexp +experiment=vit_ternary"
        )
    known = known_keys()
    section = key.rpartition(".")[0]
    siblings = [name for name in known if name.rpartition(".")[0] == section]
    allowed = ", ".join(siblings) if siblings else ", ".join(k for k in known if "." not in k)
    return f"unknown key '{key}'.{nearest(key, known)} Known here: {allowed}"


def known_keys() -> list[str]:
    """Every key of the config as it is without overrides, and of the groups that were chosen."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    choices = [word for word in sys.argv[1:] if is_choice(word)]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            config = compose("config", choices)
        except (HydraException, OmegaConfBaseException):
            config = compose("config")
    return list(leaves(config))


def is_choice(word: str) -> bool:
    """Whether an argument chooses one option of a config group."""
    group = word.lstrip("+").partition("=")[0]
    return "=" in word and "," not in word and (CONF / group).is_dir()


def leaves(config: DictConfig) -> list[str]:
    """Dotted names of all keys."""
    names = []
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    stack = [(str(k), v) for k, v in plain.items()]
    while stack:
        name, value = stack.pop(0)
        names.append(name)
        if isinstance(value, dict):
            stack = [(f"{name}.{k}", v) for k, v in value.items()] + stack
    return names
