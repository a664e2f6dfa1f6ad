"""The keyword arguments that a registered class takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints


def keywords(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a function or class by name, their annotations evaluated.

    Where a constructor hands `**options` on, those of the class above it count as well.
    """
    classes = getattr(target, "__mro__", ())
    inits = [vars(cls)["__init__"] for cls in classes if "__init__" in vars(cls) and cls is not object]
    if classes and not inits:
        return {}
    found: dict[str, inspect.Parameter] = {}
    for function in inits or [target]:
        parameters = list(inspect.signature(function).parameters.values())[bool(inits) :]
        hints = get_type_hints(function, include_extras=True)
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                annotated = parameter.replace(annotation=hints.get(parameter.name, Any))
                found.setdefault(parameter.name, annotated)
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return found
