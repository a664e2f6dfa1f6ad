"""Secrets that were typed as overrides of a multirun: jobs inherit them and read no such word."""

from __future__ import annotations

import os
import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Transformer
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
    key, _, text = word.partition("=")
    name = "_".join(["BITEXP_SECRET", *re.findall(r"\w+", key.upper()), *re.findall(r"\d+", job)])
    if not override.is_sweep_override():
        return f"{key}={inherited(name, override.value(), text)}"
    values = override.sweep_iterator(transformer=lambda value: value)
    texts = override.sweep_iterator(transformer=Transformer.encode)
    pairs = enumerate(zip(values, texts, strict=True))
    return f"{key}={','.join(inherited(f'{name}_{n}', value, str(text)) for n, (value, text) in pairs)}"


def inherited(name: str, value: Any, text: str) -> str:
    """Puts a value into the environment of this process, and returns what jobs read it by.

    Args:
        text: the value as it was typed.
    """
    plain = str(value) if isinstance(value, str) else None
    os.environ[name] = text if plain is None else plain
    place = f"${{oc.env:{name}}}"
    return f"'${{oc.decode:{place}}}'" if plain is None else place


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
