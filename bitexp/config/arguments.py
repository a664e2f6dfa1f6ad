"""Keyword arguments from YAML, checked against the signature of the class that takes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bitexp.common.errors import UserError
from bitexp.common.signatures import keywords
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
