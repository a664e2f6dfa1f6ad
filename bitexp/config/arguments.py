"""Keyword arguments from YAML, checked against the signature of the class that takes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from bitexp.common.errors import UserError
from bitexp.common.spelling import unknown_key
from bitexp.config.explain import explain


def check_arguments(
    section: str, target: Callable[..., Any], values: Mapping[str, Any], given: Collection[str] = ()
) -> dict[str, Any]:
    """Checks keyword arguments from YAML against the annotations of `target`.

    Args:
        given: parameters that the caller provides; YAML may not.

    Returns:
        the values in the types of the annotations: `1` where a float belongs becomes `1.0`.

    Raises:
        UserError: unknown or missing keys and values of the wrong type, all of them.
    """
    known = keywords(target)
    parameters = [name for name in known if name not in given]
    problems = [
        f"the key '{section}.{name}' is missing"
        for name in parameters
        if name not in values and known[name].default is inspect.Parameter.empty
    ]
    checked = {}
    for key, value in values.items():
        if key not in parameters:
            near = [section, *(f"{section}.{name}" for name in parameters)]
            problems.append(unknown_key(f"{section}.{key}", near))
            continue
        try:
            checked[key] = TypeAdapter(known[key].annotation).validate_python(value, strict=True)
        except ValidationError as error:
            problems.append(explain(error, f"{section}.{key}", value))
    if problems:
        raise UserError("\n".join(problems))
    return checked


def keywords(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a function or class by name, their annotations evaluated.

    Where a constructor hands `**options` on, those of the class above it count as well.
    """
    inits = [vars(cls)["__init__"] for cls in getattr(target, "__mro__", ()) if "__init__" in vars(cls)]
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
