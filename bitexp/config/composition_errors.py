"""Errors of composition in words, with the known words and the nearest match."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bitexp.common.spelling import dotted, nearest, unknown_key
from bitexp.config.composition import compose_lazily
from bitexp.config.old import MOVED
from bitexp.config.paths import CONF


def explain(problem: Exception, typed: Sequence[str]) -> str:
    """A composition error in words, with the known words and the closest match.

    Args:
        typed: the overrides that were composed; flags among them do no harm.
    """
    if isinstance(problem, MissingConfigException) and problem.missing_cfg_file:
        group, _, word = problem.missing_cfg_file.rpartition("/")
        options = [str(option) for option in problem.options or []]
        if options:
            return f"unknown {group} '{word}'.{nearest(word, options)} Known: {', '.join(options)}"
    if isinstance(problem, OverrideParseException):
        why = [line for line in lines(problem.message) if not line.startswith(("See", "Error"))]
        return (
            f"'{problem.override}' cannot be read: {', '.join(why)}. Write key=value, "
            "and quote what the shell or YAML would split: 'model.hidden=[64, 64]'"
        )
    text = "\n".join(str(part) for part in (problem, problem.__cause__) if part is not None)
    if match := re.search(r"Could not override '([^']+)'", text):
        return not_there(match[1].lstrip("+"), text, typed)
    if match := re.search(r"Could not append to config. An item is already at '([^']+)'", text):
        return f"'{match[1]}' exists already: write {match[1]}=..., without the +"
    if match := re.search(r"Could not delete from config. '([^']+)' does not exist", text):
        return unknown_key(match[1], known_keys(typed))
    if match := re.search(r"full_key: (\S+)", text):
        return f"{match[1]}: {lines(text)[0]}"
    return "\n".join(dict.fromkeys(lines(text))) or type(problem).__name__


def lines(text: str) -> list[str]:
    """The lines of a text that are not empty."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def not_there(key: str, text: str, typed: Sequence[str]) -> str:
    """The error for an override of a group or a key that the config does not have."""
    if "No match in the defaults list" in text:
        override = next((word for word in typed if word.startswith(f"{key}=")), f"{key}=...")
        return f"'{key}' is not in the defaults list: write +{override} to add it"
    if key in MOVED:
        return f"'{key}' is now '{MOVED[key]}'"
    inner = re.search(r"full_key: (\S+)", text)
    if inner and inner[1].startswith(f"{key}."):
        return (
            f"'{key}={{...}}' is merged into the section that is there, which has no key "
            f"'{inner[1].removeprefix(f'{key}.')}'. Add it with +{inner[1]}=..., or choose an option of the "
            "group that brings it"
        )
    return unknown_key(key, known_keys(typed, of_hydra=key.startswith("hydra.")))


def known_keys(typed: Sequence[str], of_hydra: bool = False) -> list[str]:
    """Every key of the config as it is without overrides, and of the groups that were chosen.

    Args:
        of_hydra: Hydra's own keys as well, which a user seldom means.
    """
    try:
        config = compose_lazily([word for word in typed if is_choice(word)], of_hydra)
    except (HydraException, OmegaConfBaseException):
        config = compose_lazily([], of_hydra)
    plain = OmegaConf.to_container(config, resolve=False)
    return dotted(plain) if isinstance(plain, dict) else []


def is_choice(word: str) -> bool:
    """Whether an argument chooses one option of a config group."""
    group = word.lstrip("+").partition("=")[0]
    return "=" in word and "," not in word and (CONF / group).is_dir()
