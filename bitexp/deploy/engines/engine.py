"""What every engine is, and their registry by the words of `--runtime`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Protocol

from torch import Tensor

from bitexp.common.registry import Registry

ENGINES: Registry[type[Engine]] = Registry("runtime")


class Text(Protocol):
    """A text in an engine, which keeps the keys and values of what it has read."""

    def read(self, tokens: Sequence[int]) -> Tensor:
        """fp32 logits `[vocabulary]` after the last of some more tokens; they hold until the next ones."""


class Engine:
    """A model that was exported, in a program that is not bitexp.

    Raises `UserError` where the engine is not installed or does not take the files.

    Args:
        folder: that the exporter of `target` wrote.
    """

    target: ClassVar[str]
    """The exporter whose files it reads."""
    asked_for: ClassVar[bool] = False
    """Whether it runs only where it is named, since it is slow."""
    remarks: str = ""
    """What else was found out while it ran, in words."""
    measures: Mapping[str, float] = MappingProxyType({})
    """The same as numbers, by name."""

    def __init__(self, folder: Path) -> None:
        raise NotImplementedError

    def outputs(self, inputs: Tensor) -> Tensor:
        """fp32 logits: of tokens `[B, T]` `[B, T, vocabulary]`, of images `[B, C, H, W]` `[B, classes]`."""
        raise NotImplementedError

    def text(self) -> Text | None:
        """A new text, the only one from now on; None where an engine computes all of a text anew."""
        return None
