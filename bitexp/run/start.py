"""What a run starts from: weights of a source, loaded into the plain model before it is quantized.

What the quantizer learns is made afterwards, and so begins with these weights; where the source is a run
with the same quantizer in a layer, what that has learned goes on. Draws of the seed are what they are
without a source, so that whatever is new begins as it would have begun.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bitexp.common.errors import UserError
from bitexp.common.format import counted
from bitexp.common.spelling import nearest
from bitexp.config.schema import Start
from bitexp.deploy.sources import Source, find_source
from bitexp.quant.layers import quantized_layers
from bitexp.quant.patterns import matches
from bitexp.run.start_checks import compare_arguments

SHOWN = 6


@dataclass
class Loaded:
    """What was taken from a source, and what became of the rest."""

    start: Start
    source: Source
    names: frozenset[str]
    """Of all its weights."""
    digest: str
    """A hash of them."""
    taken: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    learned: list[str] = field(default_factory=list)
    """Layers whose quantizer goes on with what it had learned."""

    def record(self) -> dict[str, Any]:
        """For provenance: compared where the run is resumed."""
        described = self.source.describe()
        return {
            **{key: described[key] for key in ("kind", "path", "identity")},
            "weights": self.start.weights,
            "digest": self.digest,
            "tensors": len(self.taken),
            "new": self.new,
            "unused": self.unused,
            "learned": self.learned,
        }

    def line(self) -> str:
        """In words."""
        described = self.source.describe()
        which = f" ({self.start.weights} weights)" if self.source.kind == "run" else ""
        words = f"{described['kind']} {described['path']}{which}: {counted(len(self.taken), 'tensor')}"
        for label, names in (("new", self.new), ("unused", self.unused)):
            if names:
                words += f"; {label}: {listed(names)}"
        if self.learned:
            words += f"; the quantizer goes on in {counted(len(self.learned), 'layer')}"
        return words


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """A hash of weights by name."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {list(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def listed(names: Iterable[str]) -> str:
    """The first of some names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def load(
    start: Start, name: str, arguments: Mapping[str, Any], model: nn.Module, source: Source | None = None
) -> Loaded:
    """Puts the weights of a source into a plain model, in place.

    Args:
        name: of the model in its registry; arguments: that it was built with. source: one that is at hand
            already; None: the one that `start.from` names.

    Raises:
        UserError: the source is missing, damaged, another than before, or of another shape. What only one
            of both has is told by `check`, once the model is quantized.
    """
    if source is None:
        assert start.source is not None
        source = find_source(start.source)
    if start.identity not in (None, source.identity):
        raise UserError(
            f"{called(start)} is another than this run began with: {source.identity}, and it was "
            f"{start.identity}"
        )
    weights = source.weights(start.weights, name)  # whose shapes are those of the model it is said to be of
    compare_arguments(start, source, name, arguments)
    loaded = Loaded(start, source, frozenset(weights), digest_of(weights))
    state = model.state_dict()
    others = []
    for key, tensor in state.items():
        given = weights.get(key)
        if given is None:
            continue
        if matches(key, start.missing):
            loaded.new.append(key)
        elif given.shape == tensor.shape:
            tensor.copy_(given)
            loaded.taken.append(key)
        else:
            others.append(f"{key} is {list(given.shape)} there and {list(tensor.shape)} here")
    if others:
        raise UserError(
            f"{called(start)}{of_model(source, name)} does not fit this model: {listed(others)}. "
            "Choose the model that it is of, or let these begin at random: start.missing=["
            + ",".join(quoted_names(other.partition(" is ")[0] for other in others))
            + "]"
        )
    loaded.unused = sorted(loaded.names - set(state))
    return loaded


def called(start: Start) -> str:
    """What a user said the source is."""
    return "the run of start.run" if start.source is None else f"start.from={start.source}"


def of_model(source: Source, name: str) -> str:
    """What model a source is of, in words, where that is another than ours."""
    theirs = source.describe()["model"]
    return f", which is of model={theirs}," if theirs not in (None, name) else ""


def check(loaded: Loaded, model: nn.Module) -> None:
    """Tells what only one of both has; `model` is quantized by now, so that norms may have gone.

    Raises:
        UserError: it is not listed in start.missing, or start.unused.
    """
    start, here = loaded.start, plain_names(model)
    absent = [name for name in here if name not in loaded.names]
    loaded.new = sorted({*loaded.new, *absent})
    problems = []
    if silent := [name for name in absent if not matches(name, start.missing)]:
        problems.append(
            f"{called(start)} lacks {listed(silent)}. Let these begin at random with "
            f"start.missing=[{','.join(quoted_names(silent))}], or choose the model that it is of"
        )
    if silent := [name for name in loaded.unused if not matches(name, start.unused)]:
        problems.append(
            f"{called(start)} has {listed(silent)}, for which this model has no place. Leave them "
            f"out with start.unused=[{','.join(quoted_names(silent))}], or choose the model that it is of"
        )
    known = [*here, *loaded.names]
    for key in ("missing", "unused"):
        idle = [pattern for pattern in getattr(start, key) if not any(matches(n, [pattern]) for n in known)]
        if idle:
            hint = nearest(idle[0], known)
            problems.append(f"start.{key} names {listed(idle)}, and neither model has such a name.{hint}")
    if problems:
        raise UserError("\n".join(problems))


def plain_names(model: nn.Module) -> list[str]:
    """What a quantized model holds but for the parts of its quantizer."""
    layers = quantized_layers(model)
    parts = tuple(f"{name}.{own}." for name in layers for own in ("parts", "earlier"))
    return [name for name in model.state_dict() if not name.startswith(parts)]


def quoted_names(names: Iterable[str]) -> list[str]:
    """Names as a list of an override has them, those of one kind of block as one pattern."""
    patterns: dict[str, None] = {}
    for name in names:
        parts = ["*" if part.isdigit() else part for part in name.split(".")]
        patterns['"' + ".".join(parts) + '"' if "*" in parts else name] = None
    return list(patterns)


def carry_on(loaded: Loaded, model: nn.Module) -> None:
    """Gives layers with the quantizer that they had in the source what this has learned there."""
    options = loaded.source.options()
    if not options:
        return
    learned = loaded.source.learned(loaded.start.weights)
    for name, layer in quantized_layers(model).items():
        own = layer.parts.state_dict()
        given = learned.get(name, {})
        alike = {key: tuple(value.shape) for key, value in own.items()} == {
            key: tuple(value.shape) for key, value in given.items()
        }
        if own and alike and options.get(name) == layer.options:
            layer.parts.load_state_dict(dict(given))
            loaded.learned.append(name)
