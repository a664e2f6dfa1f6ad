"""Plain networks that know no quantizer. A file in this folder that registers a model is enough."""

from __future__ import annotations

from typing import Any

from torch import nn

from bitexp.common.registry import load_modules
from bitexp.config.choices import read_choice
from bitexp.models.generation import Sampling, generate, generate_together
from bitexp.models.registry import MODELS

load_modules(__name__, __path__)

__all__ = ["MODELS", "Sampling", "build_model", "generate", "generate_together"]


def build_model(name: str, **arguments: Any) -> nn.Module:
    """The model that `model=NAME` chooses.

    Args:
        arguments: what it needs of the data (`shape` and `classes`, or `vocabulary` and `context`), and other
            values for the keys of its YAML.

    Raises:
        UnknownName: there is no such YAML.
        TypeError: arguments are missing, or unknown.
    """
    section = read_choice("model", name)
    del section["full_precision"]
    model: nn.Module = MODELS.get(section.pop("name"))(**section | arguments)
    return model
