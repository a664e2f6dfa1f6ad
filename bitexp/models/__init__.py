"""Plain networks that know no quantizer. A file in this folder that registers a model is enough."""

from bitexp.common.registry import load_modules
from bitexp.models.registry import MODELS

load_modules(__name__, __path__)

__all__ = ["MODELS"]
