"""Whether a run can start from a source: its model, its vocabulary, and whether it stayed as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from bitexp.common.errors import UserError
from bitexp.config.schema import Settings, Start
from bitexp.data.base import Data
from bitexp.data.text.tokenizers import load_tokenizer
from bitexp.deploy.sources import Source
from bitexp.models import MODELS

OF_THE_DATA = ("shape", "classes", "vocabulary", "context")
WITHOUT_EFFECT = (*OF_THE_DATA, "dropout", "init_std")
"""Arguments of models that may differ: those that other data bring, and those that evaluation ignores."""


def compare_arguments(start: Start, source: Source, name: str, arguments: Mapping[str, Any]) -> None:
    """Compares those arguments of the model that leave all names and shapes what they are.

    Nothing else would notice that a source has other heads, or another activation.

    Raises:
        UserError: they differ, and start.changed does not name them.
    """
    described = source.describe()
    if described["model"] != name:
        return
    given = described["model_arguments"]
    with torch.device("meta"):
        ours = shapes(MODELS.get(name)(**arguments))
        differ = [
            key
            for key, value in given.items()
            if key in arguments and not same(arguments[key], value) and key not in WITHOUT_EFFECT
        ]
        silent = [key for key in differ if unnoticed(name, arguments, key, given[key], ours)]
    wrong = [key for key in silent if key not in start.changed]
    if wrong:
        first = wrong[0]
        pairs = ", ".join(f"{key}={given[key]} there and {arguments[key]} here" for key in wrong)
        raise UserError(
            f"{source.text} is of another model, though all shapes fit: {pairs}. Use "
            f"model.{first}={given[first]}, or say that it may differ: start.changed=[{','.join(wrong)}]"
        )


def check_norm(settings: Settings, source: Source) -> None:
    """Raises `UserError` where a network that is not trained any more would have other norms than before."""
    theirs = (source.describe()["quantizer"] or {}).get("norm")
    if settings.trainer.max_steps == 0 and theirs not in (None, ours := settings.quantizer.norm):
        raise UserError(
            f"start.from={source.text} was trained with quantizer.norm={theirs}, and quantizer.norm={ours} "
            "makes another network of it, which trainer.max_steps=0 leaves untrained; use "
            f"quantizer.norm={theirs}"
        )


def unnoticed(name: str, arguments: Mapping[str, Any], key: str, value: Any, ours: Mapping[str, Any]) -> bool:
    """Whether a model with another value for one argument has the same names and shapes."""
    try:
        return shapes(MODELS.get(name)(**{**arguments, key: value})) == ours
    except (ValueError, RuntimeError):
        return False


def same(one: Any, other: Any) -> bool:
    """Whether two values are one in JSON."""
    return list(one) == list(other) if isinstance(one, list | tuple) else bool(one == other)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all that a model holds."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_as_before(text: str | None, digest: str, attempts: Sequence[Mapping[str, Any]]) -> None:
    """Raises `UserError` where a run that resumes began with other weights than the source has now."""
    before = attempts[-1].get("start") if attempts else None
    if isinstance(before, Mapping) and before.get("digest") != digest:
        raise UserError(
            f"start.from={text} holds other weights than those that this run began with, and "
            "it is not finished. Restore them and the same command continues it, or use rerun=true to begin "
            "anew with those that are there now"
        )


def check_vocabulary(source: Source, data: Data) -> None:
    """Raises `UserError` where the tokens of the data mean something else in the source."""
    theirs, ours = source.tokenizer, data.preprocessing().get("tokenizer")
    if theirs is None or ours is None:
        return
    if words_of(theirs, source.text) != words_of(ours, "the data"):
        raise UserError(
            f"{source.text} has another vocabulary than the data: the same numbers stand "
            "for other tokens. Use its tokenizer (data.tokenizer=FILE/tokenizer.json), or let the embedding "
            "begin at random: start.missing=[embed,head]"
        )


def words_of(text: str, origin: object) -> Any:
    """What the tokens of a tokenizer are, to be compared."""
    if text == "bytes":
        return text
    tokenizer: Any = load_tokenizer(text, origin)
    return tokenizer.inner.get_vocab()
