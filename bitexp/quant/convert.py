"""Put quantized layers into any model, and prove that it took: what is converted, what stays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from bitexp.quant.checks import unfit_parameters
from bitexp.quant.folding import check_foldable, fold
from bitexp.quant.layers import BitConv2d, BitLinear, QuantizedLayer
from bitexp.quant.options import LayerOptions
from bitexp.quant.patterns import check_patterns, matches
from bitexp.quant.presets import as_quantizer
from bitexp.quant.proof import prove
from bitexp.quant.quantizer import Quantizer
from bitexp.quant.twins import become, carry_over


@dataclass(frozen=True)
class Conversion:
    """What `quantize` found: dotted names of the body (quantized layers) and of all kept weights."""

    body: list[str]
    kept: list[str]


def quantize(
    model: nn.Module,
    quantizer: Quantizer | Mapping[str, Any] | str = "ternary_mean",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    example: Any = None,
) -> Conversion:
    """Makes of every `nn.Linear` and `nn.Conv2d` that `include` names and `exclude` does not a quantized one.

    Patterns are those of a shell, on dotted names; a module's name covers all below it. Where a module
    declares `prenorm = {linear: norm}`, the norm right before a linear becomes the linear's own, and an
    identity takes its place; what it has learned goes into the linear's weights. Layers stay the same objects
    with the same parameters, so that ties, lists and optimizers go on, and hooks, the training flag, and
    whatever else was attached to them stay. Subclasses, whose own code would be lost, are refused.

    Args:
        quantizer: a preset of conf/quantizer by its name, a `Quantizer`, or a config of one.
        example: a batch with which the conversion is proven (`proof.prove`): what the model is called with,
            a tuple for several arguments, a mapping for arguments by name.

    Raises:
        ValueError: a pattern that matches nothing, nothing to convert, a layer that cannot be converted,
            weights of two and more dimensions that are neither converted nor excluded, a norm whose learned
            gain or shift has no place in what it feeds, or, where there is an example, layers that the model
            passes by. Of these only the last leaves the model changed.
    """
    quantizer = as_quantizer(quantizer)
    named = dict(model.named_modules(remove_duplicate=False))
    matched = [pattern for rule in quantizer.layers if not rule.optional for pattern in rule.match]
    check_patterns(
        [*include, *exclude, *matched],
        [*named, *(n for n, _ in model.named_parameters(remove_duplicate=False))],
    )
    body: dict[str, nn.Linear | nn.Conv2d] = {
        name: module
        for name, module in named.items()
        if isinstance(module, nn.Linear | nn.Conv2d) and matches(name, include) and not matches(name, exclude)
    }
    if not body:
        raise ValueError(
            f"no layer of {type(model).__name__} is left to quantize: include={list(include)}, "
            f"exclude={list(exclude)}"
        )
    settings = {name: quantizer.for_layer(name) for name in body}
    check_replaceable({name: layer for name, layer in body.items() if settings[name].replaces_layers})
    if "" in body:
        raise ValueError("the model is a single layer and cannot be replaced in place: wrap it in a module")
    kept = kept_weights(model, body, exclude)
    replace(model, {name: (layer, settings[name]) for name, layer in body.items()}, quantizer)
    if example is not None:
        prove(model, example)
    return Conversion(sorted(body), kept)


def check_replaceable(layers: Mapping[str, nn.Linear | nn.Conv2d]) -> None:
    """Raises `ValueError` for layers that are more than an `nn.Linear` or `nn.Conv2d`, with what to do."""
    refused = [f"{name}: {reason}" for name, layer in layers.items() if (reason := own_code(layer))]
    if refused:
        raise ValueError("\n".join(refused))


def own_code(layer: nn.Linear | nn.Conv2d) -> str | None:
    """Why a quantized layer cannot compute what this one does, or None."""
    if reason := unfit_parameters(layer.weight, layer.bias):
        return reason
    kind, base = type(layer), nn.Linear if isinstance(layer, nn.Linear) else nn.Conv2d
    if kind is not base:
        return (
            f"it is a {kind.__name__}, and what this does beyond an nn.{base.__name__} would be lost; "
            f"exclude it, or make it an nn.{base.__name__} inside a module of your own"
        )
    if "forward" in vars(layer):
        return "its forward was replaced by another, which would be lost; exclude it"
    return None


def replace(
    model: nn.Module, body: Mapping[str, tuple[nn.Module, LayerOptions]], quantizer: Quantizer
) -> None:
    """Makes quantized layers of the body, moving declared norms into them."""
    new, taken = twins_of(body, quantizer), taken_norms(model, body)  # before anything changes
    for module, name, norm, fed in taken:
        check_foldable(name, getattr(module, norm), fed, model)
    folded = [fold(getattr(module, norm), fed) for module, _, norm, fed in taken]
    if any(folded):
        new = twins_of(body, quantizer)  # whose parts begin with the weights as they are now
    for module, _, norm, _ in taken:
        setattr(module, norm, nn.Identity())
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and {id(module.linear1), id(module.linear2)} & set(
            new
        ):
            module.activation_relu_or_gelu = 0  # no fast path, also where weights are fake ones (export)
    for layer in {id(layer): layer for layer, _ in body.values()}.values():
        if id(layer) in new:
            become(layer, new[id(layer)])


def twins_of(
    body: Mapping[str, tuple[nn.Module, LayerOptions]], quantizer: Quantizer
) -> dict[int, nn.Module]:
    """The quantized twins of all layers that get one, by the layer's `id`."""
    twins: dict[int, nn.Module] = {}
    for name, (layer, options) in body.items():
        if id(layer) not in twins and options.replaces_layers:
            twins[id(layer)] = make(name, layer, options, quantizer)
    return twins


def taken_norms(
    model: nn.Module, body: Mapping[str, tuple[nn.Module, LayerOptions]]
) -> list[tuple[nn.Module, str, str, list[Any]]]:
    """The declared norms that become those of layers: owner, whole name, name, and the layers they feed."""
    found: list[tuple[nn.Module, str, str, list[Any]]] = []
    for name, module in model.named_modules():
        prenorm: dict[str, str] = getattr(module, "prenorm", {})
        for norm in dict.fromkeys(prenorm.values()):
            fed = [f"{name}.{linear}".lstrip(".") for linear, n in prenorm.items() if n == norm]
            if all(linear in body and body[linear][1].norm != "none" for linear in fed):
                found.append(
                    (module, f"{name}.{norm}".lstrip("."), norm, [body[linear][0] for linear in fed])
                )
    return found


def make(name: str, layer: nn.Module, options: LayerOptions, quantizer: Quantizer) -> QuantizedLayer:
    """The quantized twin of a layer, with all that was attached to it; errors name the layer."""
    try:
        stages = quantizer.staged(options)
        if isinstance(layer, nn.Linear):
            twin: QuantizedLayer = BitLinear(layer, options, stages)
        else:
            assert isinstance(layer, nn.Conv2d)
            twin = BitConv2d(layer, options, stages)
        twin.name = name
        carry_over(layer, twin, ("weight", "bias", *twin.spec.attributes()))
        return twin
    except ValueError as error:
        raise ValueError(f"layer {name}: {error}") from error


def kept_weights(model: nn.Module, body: Iterable[str], exclude: Sequence[str]) -> list[str]:
    """Weights of two and more dimensions outside the body. Raises where one is not excluded by name."""
    converted = {f"{name}.weight" for name in body}
    kept = [
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.dim() >= 2 and name not in converted
    ]
    silent = [name for name in kept if not matches(name, exclude)]
    if silent:
        raise ValueError(
            f"{', '.join(silent)} would stay in full precision without the config saying so; add "
            "them to model.full_precision (or to quantizer.exclude)"
        )
    return kept
