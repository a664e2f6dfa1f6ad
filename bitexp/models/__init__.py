"""Plain networks that know no quantizer. A file in this folder that registers a model is enough."""

from importlib import import_module
from pkgutil import iter_modules

from bitexp.models.registry import MODELS

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["MODELS"]
