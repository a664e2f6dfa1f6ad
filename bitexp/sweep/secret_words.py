"""Secrets that were typed as overrides of a multirun: jobs inherit them and read no such word."""

from __future__ import annotations

import os
import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from bitexp.common.secrets import holds_secret, redacted
from bitexp.sweep.storage import STORAGE


def without_secret(word: str, job: str = "") -> str:
    """An override for command lines and files; a secret value goes into the environment of this process.

    Args:
        job: sets the words of one job apart from those of others at the same time.
    """
    if not holds_secret(word):
        return word
    override = OverridesParser.create().parse_override(word)
    if override.is_sweep_override():
        return word  # each of its values is the word of a job
    key, _, text = word.partition("=")
    value = override.value()
    name = "_".join(["BITEXP_SECRET", *re.findall(r"\w+", key.upper()), *re.findall(r"\d+", job)])
    os.environ[name] = value if isinstance(value, str) else text
    inherited = f"${{oc.env:{name}}}"
    return f"{key}={inherited}" if isinstance(value, str) else f"{key}='${{oc.decode:{inherited}}}'"


def take_secrets(config: DictConfig) -> None:
    """Puts the secrets among the words of a multirun into the environment, before anything keeps them.

    Args:
        config: of the multirun, which Hydra and some launchers write into files; its jobs compose their own.
    """
    hydra = config.hydra
    with open_dict(config):
        without = redacted(OmegaConf.to_container(config, resolve=False))
        for key in [key for key in config if key != "hydra"]:
            config[key] = without[key]
        hydra.job.override_dirname = redacted(hydra.job.override_dirname)
        for part in ("task", "hydra"):
            words: Any = OmegaConf.to_container(hydra.overrides[part], resolve=False)
            hydra.overrides[part] = [without_secret(word) for word in words]
        storage = hydra.sweeper.get("storage")
        if storage is not None and holds_secret(storage):
            os.environ[STORAGE] = storage
            hydra.sweeper.storage = f"${{oc.env:{STORAGE}}}"
