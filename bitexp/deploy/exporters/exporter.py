"""What every exporter is, their registry, and which of them can express a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from bitexp.common.registry import Registry
from bitexp.deploy.description import Description
from bitexp.deploy.frozen import FrozenLayer
from bitexp.quant.layers import QuantizedLayer
from bitexp.quant.spec import LayerSpec

EXPORTERS: Registry[type[Exporter]] = Registry("export target")


class InexpressibleError(ValueError):
    """What an engine cannot compute, and the nearest setting with which it could."""


@dataclass(frozen=True)
class Packed:
    """A packed file that was read: all that an exporter goes by."""

    path: Path
    name: str
    """What to call the model: experiment and id of a run, or the name of the file."""
    model: nn.Module
    """Frozen, in eval mode, with the kernel `reference`."""
    description: Description
    preprocessing: Mapping[str, Any]


@dataclass(frozen=True)
class Exported:
    """What was written, in words for the README beside it."""

    exact: list[str]
    """What is the same as in bitexp, and what the engine computes another way; a sentence each."""
    usage: str
    """Code that runs it."""
    metadata: Mapping[str, Any]
    """For the head of the README (`bitexp.deploy.exporters.hub`): license, tags, what loads it."""
    language: str = "python"


class Exporter:
    """One form that an engine reads. Keyword arguments of a subclass are its options on the command line."""

    engine: ClassVar[str] = ""
    """The engine that runs the result, as its users call it."""

    def check(self, model: nn.Module, tokenizer: str | None = None) -> None:
        """Raises `InexpressibleError` where the form cannot hold a model.

        Args:
            model: frozen, or quantized and not trained yet, on whatever device.
            tokenizer: of a language model, as its packed file has it; None where it is not known yet.
        """
        raise NotImplementedError

    def write(self, packed: Packed, folder: Path) -> Exported:
        """Writes a model that passed `check` into an empty folder.

        Raises:
            InexpressibleError: something that shows only now.
        """
        raise NotImplementedError


def expressible(model: nn.Module, tokenizer: str | None = None) -> dict[str, str | None]:
    """For every target the reason why it cannot hold a model, quantized or frozen; None where it can."""
    return {name: reason(EXPORTERS.get(name)(), model, tokenizer) for name in EXPORTERS.names()}


def reason(exporter: Exporter, model: nn.Module, tokenizer: str | None = None) -> str | None:
    """Why an exporter cannot express a model, or None."""
    try:
        exporter.check(model, tokenizer)
    except InexpressibleError as error:
        return str(error)
    return None


def spec_of(layer: nn.Module) -> LayerSpec | None:
    """What a layer of the body is besides its tensors; None for an ordinary one."""
    return layer.spec if isinstance(layer, FrozenLayer | QuantizedLayer) else None


def quantizes(layer: nn.Module) -> bool:
    """Whether the weights of a layer are codes."""
    spec = spec_of(layer)
    return spec is not None and spec.weights is not None


def scale_dims(layer: FrozenLayer | QuantizedLayer) -> int:
    """Dimensions of a layer's scales: 0 for one of the tensor, 1 for one a row, 2 for one a group."""
    if isinstance(layer, FrozenLayer):
        return layer.scale.dim()
    return len(layer.parts.weights.rows(layer.weight)[1])
