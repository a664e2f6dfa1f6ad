"""The errors of pydantic in words: which key, its value, and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from bitexp.common.format import value_text
from bitexp.common.spelling import dotted, nearest, unknown_key


def explain(error: ValidationError, prefix: str, config: Any, model: type[BaseModel] | None = None) -> str:
    """The errors of pydantic, one line each: key=value, and what is allowed.

    Args:
        model: what was validated; it knows the keys of entries of lists, which the config need not show.
    """
    items = [(located(item["loc"], config, prefix), item) for item in error.errors()]
    extra = {where for where, item in items if item["type"] == "extra_forbidden"}
    known = [name for name in dotted(config) if name not in extra] if isinstance(config, Mapping) else []
    rules_of: dict[str, list[str]] = {}
    for where, item in items:
        if item["type"] == "extra_forbidden":
            section = where.rpartition(".")[0]
            fields = [f"{section}.{name}" for name in fields_at(model, item["loc"][:-1])]
            rules_of[unknown_key(where, [*known, section, *fields] if fields else known)] = []
        elif item["type"] == "missing":
            rules_of[f"the key '{where}' is missing"] = []
        elif item["type"] == "union_tag_invalid":
            word, words = item["ctx"]["tag"], re.findall(r"\w+", item["ctx"]["expected_tags"])
            hint = nearest(word, words)
            rules_of[f"{where}.name={word} is unknown.{hint} Known: {', '.join(words)}"] = []
        else:
            rules_of.setdefault(f"{where}={value_text(item['input'])}", []).append(
                allowed(item["type"], item["msg"])
            )
    return "\n".join(f"{subject} {' or '.join(rules)}".strip() for subject, rules in rules_of.items())


def fields_at(model: type[BaseModel] | None, loc: Sequence[int | str]) -> list[str]:
    """The keys of the entry of a list at a place; none where the place is in no list."""
    if not any(isinstance(part, int) for part in loc):
        return []
    for part in loc:
        if model is None or isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        model = next(iter(models_in(field.annotation)), None) if field else None
    return list(model.model_fields) if model else []


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that an annotation names, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)


def allowed(kind: str, message: str) -> str:
    """What a value should be, from pydantic's words."""
    if kind in ("model_type", "dict_type"):
        return "should be a section of keys"
    if kind == "string_pattern_mismatch":
        return "should be letters, digits, '_', '-' and '.'"
    return re.sub(r"^(Input|List|String) ", "", message).replace(" after validation", "")


def located(loc: tuple[int | str, ...], config: Any, prefix: str) -> str:
    """The dotted key of an error; pydantic also names the member of a union that it tried."""
    names, node = [prefix] if prefix else [], config
    for number, part in enumerate(loc):
        inside = part in node if isinstance(node, Mapping) else isinstance(part, int)
        if inside:
            node = node[part]
        if inside or (number == len(loc) - 1 and isinstance(node, Mapping)):
            names.append(str(part))
    return ".".join(names)
