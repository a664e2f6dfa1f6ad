"""A quantizer: what is done to the weights and activations of which layer, at which share of the training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bitexp.quant.options import REGISTRIES, LayerOptions, complete
from bitexp.quant.patterns import matches


@dataclass(frozen=True)
class Rule:
    """Other options for the layers that a pattern matches; patterns are those of `include`."""

    match: tuple[str, ...]
    changes: Mapping[str, Any]
    optional: bool = False
    """Whether a model may have no such layer; for presets, which do not know the model."""


@dataclass(frozen=True)
class Stage:
    """Other options until a share of the training."""

    until: float
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Quantizer:
    """What a preset in conf/quantizer says; a value that layers and models share.

    Args:
        name: the label, which is the preset's file.
        options: of every layer.
        layers: rules for some, of which the last that matches wins.
        stages: options that hold at first, in the order of their ends.

    Raises:
        ValueError: see `LayerOptions`; or stages whose ends do not rise between 0 and 1.
    """

    name: str
    options: LayerOptions
    layers: tuple[Rule, ...] = ()
    stages: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        ends = [stage.until for stage in self.stages]
        if ends != sorted(set(ends)) or any(not 0 < end < 1 for end in ends):
            raise ValueError(f"stages end at {ends}: the shares must rise, each above 0 and below 1")
        for stage in self.stages:
            fixed = sorted(FIXED & set(stage.changes))
            if fixed:
                raise ValueError(f"stages cannot change {', '.join(fixed)}; use them for the other parts")
        for options in self.variants():
            self.staged(options)

    @staticmethod
    def of(config: Mapping[str, Any]) -> Quantizer:
        """From the section `quantizer` of a config; what says which layers and when is not for us.

        Raises:
            ValueError: an unknown key, part or option, or what does not go together.
        """
        section = {key: value for key, value in config.items() if key not in SELECTION}
        name = str(section.pop("name", "custom"))
        layers = tuple(rule_of(rule) for rule in section.pop("layers", ()))
        stages = tuple(stage_of(stage) for stage in section.pop("stages", ()))
        return Quantizer(name, LayerOptions().changed(section), layers, stages)

    def for_layer(self, name: str) -> LayerOptions:
        """The options of a layer by its dotted name, at the end of training."""
        options = self.options
        for rule in self.layers:
            if matches(name, rule.match):
                options = options.changed(rule.changes)
        return options

    def staged(self, options: LayerOptions) -> list[tuple[float, LayerOptions]]:
        """The earlier options of a layer, each with the share of the training until which they hold."""
        if options.weights is None:
            return []
        return [(stage.until, options.changed(stage.changes)) for stage in self.stages]

    @property
    def quantizes(self) -> bool:
        """Whether any layer gets quantized weights."""
        return any(o.weights is not None for o in self.variants())

    @property
    def progressive(self) -> bool:
        """Whether anything depends on the share of the training: stages, or a rule for a gradient."""
        weight = torch.ones(1, 1)
        return bool(self.stages) or any(o.weights and o.parts(weight).progressive for o in self.variants())

    def variants(self) -> list[LayerOptions]:
        """The options that layers may have: those of all, and those of each rule."""
        return [self.options, *(self.options.changed(rule.changes) for rule in self.layers)]

    def to_json(self) -> dict[str, Any]:
        """As the section `quantizer` of a config, all options said."""

        def plain(changes: Mapping[str, Any]) -> dict[str, Any]:
            parts = {key: complete(key, value) for key, value in changes.items() if key in REGISTRIES}
            return {**changes, **{key: part.to_json() if part else "none" for key, part in parts.items()}}

        return {
            "name": self.name,
            **self.options.to_json(),
            "layers": [
                {
                    "match": list(rule.match),
                    **plain(rule.changes),
                    **({"optional": True} if rule.optional else {}),
                }
                for rule in self.layers
            ],
            "stages": [{"until": stage.until, **plain(stage.changes)} for stage in self.stages],
        }


FIXED = {"weights", "estimator", "norm", "bias", "gradients", "output_norm"}
"""What stages cannot change."""

SELECTION = ("include", "exclude", "lambda_schedule")
"""Keys of the section that say which layers are quantized and when, and not how."""


def rule_of(config: Mapping[str, Any]) -> Rule:
    """From an entry of `quantizer.layers`. Raises `ValueError` where it has no `match`."""
    changes = dict(config)
    match = changes.pop("match", None)
    if not match:
        raise ValueError(f"a rule of layers needs a match: {{match: 'blocks.0.*', ...}}, got {dict(config)}")
    optional = bool(changes.pop("optional", False))
    return Rule((match,) if isinstance(match, str) else tuple(match), completed(changes), optional)


def stage_of(config: Mapping[str, Any]) -> Stage:
    """From an entry of `quantizer.stages`. Raises `ValueError` where it has no `until`."""
    changes = dict(config)
    until = changes.pop("until", None)
    if until is None:
        raise ValueError(f"a stage needs its end: {{until: 0.95, ...}}, got {dict(config)}")
    return Stage(float(until), completed(changes))


def completed(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The same with parts in full, so that two spellings are equal."""
    return {key: complete(key, value) if key in REGISTRIES else value for key, value in changes.items()}
