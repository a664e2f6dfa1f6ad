"""Put quantized layers into any model, and prove that it took: what is converted, what stays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from bitexp.quant.checks import unfit_parameters
from bitexp.quant.layers import BitConv2d, BitLinear, QuantizedLayer
from bitexp.quant.modes import carry_over
from bitexp.quant.options import LayerOptions
from bitexp.quant.patterns import check_patterns, matches
from bitexp.quant.presets import as_quantizer
from bitexp.quant.quantizer import Quantizer


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
) -> Conversion:
    """Replaces, in place, every `nn.Linear` and `nn.Conv2d` that `include` names and `exclude` does not.

    Patterns are those of a shell, on dotted names; a module's name covers all below it. Where a module
    declares `prenorm = {linear: norm}`, the norm right before a linear becomes the linear's own, and an
    identity takes its place. Parameters are taken over as they are, so ties survive, and so do hooks, the
    training flag, and whatever else was attached to a layer. Subclasses, whose own code would be lost, are
    refused.

    Args:
        quantizer: a preset of conf/quantizer by its name, a `Quantizer`, or a config of one.

    Raises:
        ValueError: a pattern that matches nothing, nothing to convert, a layer that cannot be converted,
            or weights of two and more dimensions that are neither converted nor excluded.
    """
    quantizer = as_quantizer(quantizer)
    named = dict(model.named_modules(remove_duplicate=False))
    matched = [pattern for rule in quantizer.layers if not rule.optional for pattern in rule.match]
    check_patterns([*include, *exclude, *matched], [*named, *(n for n, _ in model.named_parameters())])
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
    """Swaps the layers of the body for quantized ones, moving declared norms into them."""
    new: dict[int, nn.Module] = {}
    for name, (layer, options) in body.items():  # all are made before the first is put in place
        if id(layer) not in new and options.replaces_layers:
            new[id(layer)] = make(name, layer, options, quantizer)
    for name, module in list(model.named_modules()):
        prenorm: dict[str, str] = getattr(module, "prenorm", {})
        for norm in set(prenorm.values()):
            fed = [f"{name}.{linear}".lstrip(".") for linear, n in prenorm.items() if n == norm]
            if all(linear in body and body[linear][1].norm != "none" for linear in fed):
                setattr(module, norm, nn.Identity())
    for name, (layer, _) in body.items():
        if id(layer) in new:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, new[id(layer)])


def make(name: str, layer: nn.Module, options: LayerOptions, quantizer: Quantizer) -> QuantizedLayer:
    """The quantized twin of a layer, with all that was attached to it; errors name the layer."""
    try:
        stages = quantizer.staged(options)
        if isinstance(layer, nn.Linear):
            twin: QuantizedLayer = BitLinear(layer, options, stages)
        else:
            assert isinstance(layer, nn.Conv2d)
            twin = BitConv2d(layer, options, stages)
        carry_over(layer, twin, twin.spec.attributes())
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


def prove(model: nn.Module, probe: Callable[[], object]) -> None:
    """Runs `probe`, one forward of the model, and checks that it calls every quantized layer.

    Attention modules that read `.weight` past the layer (nn.MultiheadAttention, Swin) train in full
    precision while looking quantized; this is what finds them.

    Raises:
        ValueError: naming the layers that were not called.
    """
    called: set[str] = set()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLayer)}
    hooks = [
        layer.register_forward_hook(lambda *_, name=name: called.add(name)) for name, layer in layers.items()
    ]
    try:
        probe()
    finally:
        for hook in hooks:
            hook.remove()
    missed = [name for name in layers if name not in called]
    if missed:
        raise ValueError(
            f"{', '.join(missed)}: the model reads these weights without calling the layer, so they would "
            "train in full precision; add them to model.full_precision (or to quantizer.exclude)"
        )
