"""What is chosen for one layer, and the parts that are made of it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

import torch
from torch import Tensor, nn

from bitexp.common.registry import Registry
from bitexp.common.signatures import keywords
from bitexp.common.spelling import nearest
from bitexp.quant.levels import Levels
from bitexp.quant.parts import (
    ACTIVATIONS,
    ESTIMATORS,
    GRADIENTS,
    SPARSIFIERS,
    TRANSFORMS,
    WEIGHTS,
    ActivationQuantizer,
    Estimator,
    GradientQuantizer,
    LayerPart,
    Sparsifier,
    Transform,
    WeightQuantizer,
)
from bitexp.quant.spec import BiasRule, ConvArgs, Geometry, Norm, Part

REGISTRIES: dict[str, Registry[Any]] = {
    "weights": WEIGHTS,
    "activations": ACTIVATIONS,
    "transform": TRANSFORMS,
    "sparsifier": SPARSIFIERS,
    "estimator": ESTIMATORS,
    "gradients": GRADIENTS,
}
"""The parts of a quantizer by the key that chooses them."""

STRAIGHT_THROUGH = "straight_through"
NOTHING = {
    "activations": "none",
    "transform": "none",
    "sparsifier": "none",
    "estimator": STRAIGHT_THROUGH,
    "gradients": "none",
}
"""What to write for a part that has nothing to do."""


CHOICES = {"norm": get_args(Norm), "bias": get_args(BiasRule), "output_norm": get_args(Norm)}
"""What may be chosen that is no part."""


@dataclass(frozen=True)
class LayerOptions:
    """All that is chosen for one layer. Without any part and norm it stays what it is.

    Raises:
        ValueError: an unknown part or option, or choices that do not go together.
    """

    weights: Part | None = None
    activations: Part | None = None
    transform: Part | None = None
    sparsifier: Part | None = None
    estimator: Part | None = None
    norm: Norm = "none"
    bias: BiasRule = "plain"
    gradients: Part | None = None
    output_norm: Norm = "none"

    def __post_init__(self) -> None:
        for key in REGISTRIES:
            object.__setattr__(self, key, complete(key, getattr(self, key)))
        if self.estimator is None:
            object.__setattr__(self, "estimator", Part(STRAIGHT_THROUGH))
        for key, known in CHOICES.items():
            if (value := getattr(self, key)) not in known:
                raise ValueError(f"{key}={value} should be one of {', '.join(known)}")
        for key, nothing in NOTHING.items():
            part = getattr(self, key)
            if self.weights is None and part is not None and part.name != nothing:
                raise ValueError(
                    f"{key}={part.name} would do nothing with weights=none: choose weights or {key}={nothing}"
                )
        if self.output_norm != "none" and (self.weights is None or self.bias == "scaled"):
            raise ValueError(
                f"output_norm={self.output_norm} comes between product and bias of a quantized layer, "
                "so it needs weights and bias=plain"
            )
        tensor = self.weights is not None and self.weights.options.get("granularity", "tensor") == "tensor"
        if self.bias == "scaled" and (self.activations is None or not tensor):
            raise ValueError("bias=scaled needs quantized activations and weights.granularity=tensor")
        if self.weights is not None:
            weights = self.parts(torch.ones(1, 1)).weights  # their constructors know what else cannot be
            if self.bias == "scaled" and (weights.has_output_offset or weights.levels.planes > 1):
                raise ValueError(f"bias=scaled does not go with weights={self.weights.name}: use bias=plain")

    @property
    def levels(self) -> Levels | None:
        """What the codes of the weights may be; None for floats."""
        return None if self.weights is None else self.parts(torch.ones(1, 1)).weights.levels

    @property
    def replaces_layers(self) -> bool:
        """Whether a layer with these options is another than before."""
        return self.weights is not None or self.norm != "none"

    def changed(self, changes: Mapping[str, Any]) -> LayerOptions:
        """With some of them replaced, each part as a whole. Raises `ValueError` for an unknown key."""
        known = [field.name for field in fields(self)]
        for key in changes:
            if key not in known:
                raise ValueError(f"unknown key '{key}'.{nearest(key, known)} Known: {', '.join(known)}")
        new: dict[str, Any] = {k: Part.of(v) if k in REGISTRIES else v for k, v in changes.items()}
        return replace(self, **new)

    def parts(self, weight: Tensor, conv: ConvArgs | None = None) -> LayerParts:
        """New parts for a layer with these latent weights, a convolution or a linear one."""
        return LayerParts(self, weight, conv)

    def to_json(self) -> dict[str, Any]:
        """As YAML has it, parts with all their options."""
        return {
            key: (value.to_json() if isinstance(value, Part) else value or "none")
            for key, value in ((field.name, getattr(self, field.name)) for field in fields(self))
        }


def complete(key: str, part: Part | str | Mapping[str, Any] | None) -> Part | None:
    """A part with all its options; the defaults are those of its class.

    Raises:
        ValueError: no such part, or it has no such option.
    """
    part = Part.of(part)
    if part is None:
        return None
    target = REGISTRIES[key].get(part.name)
    defaults = {
        name: parameter.default
        for name, parameter in keywords(target).items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for name in part.options:
        if name not in defaults:
            known = f"Known: {', '.join(defaults)}" if defaults else "It has none"
            raise ValueError(f"{key}={part.name} has no option '{name}'.{nearest(name, defaults)} {known}")
    options = defaults | dict(part.options)
    if missing := [name for name, value in options.items() if value is inspect.Parameter.empty]:
        raise ValueError(
            f"{key}={part.name} needs {', '.join(missing)}: {{name: {part.name}, {missing[0]}: ...}}"
        )
    later = getattr(target, "later", ())
    unsaid = {key for key in later if options[key] == defaults[key]}
    return Part(part.name, {key: value for key, value in options.items() if key not in unsaid})


class LayerParts(nn.Module):
    """The parts of one layer; all but `weights` may be None."""

    weights: WeightQuantizer
    activations: ActivationQuantizer | None
    transform: Transform | None
    sparsifier: Sparsifier | None
    gradients: GradientQuantizer | None

    def __init__(self, options: LayerOptions, weight: Tensor, conv: ConvArgs | None = None) -> None:
        """Raises `ValueError` where an option of a part is out of its range."""
        super().__init__()
        at = Geometry(conv)
        self.weights = build("weights", options.weights, at, weight)
        for key in ("activations", "transform", "sparsifier", "gradients"):
            with weight.device:  # what a part learns may be as large as a row
                part = build(key, getattr(options, key), at, features=at.features(weight.shape))
            setattr(self, key, part)
            if part is not None:
                part.to(weight.device).initialize(weight.detach())
        estimator: Estimator | None = build("estimator", options.estimator, at)
        if estimator is not None and not estimator.identity:
            if not self.weights.takes_estimator:
                raise ValueError(
                    f"weights={options.weights and options.weights.name} has a gradient of its own, so "
                    f"estimator={options.estimator and options.estimator.name} would do nothing; leave it out"
                )
            self.weights.estimator = estimator

    def all(self) -> Iterator[LayerPart]:
        """Those that are there."""
        return (part for part in self.children() if isinstance(part, LayerPart))

    @property
    def progressive(self) -> bool:
        """Whether any of them depends on the share of the training."""
        rules = (getattr(part, "estimator", None) for part in self.all())
        return any(part is not None and part.progressive for part in (*self.all(), *rules))


def build(key: str, part: Part | None, at: Geometry, *given: Tensor, features: int = 1) -> Any:
    """A part for one layer, or None; `features` are its inputs, or input channels."""
    if part is None:
        return None
    target = REGISTRIES[key].get(part.name)
    wanted = {"features": features} if "features" in keywords(target) else {}
    built = target(*given, **wanted, **part.options)
    if isinstance(built, LayerPart):
        built.feature_dim = at.feature_dim
    return built
