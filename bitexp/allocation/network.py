"""A trained network in full precision, any layer of which can be quantized at any of some widths."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitexp.allocation.program import Table
from bitexp.models.ties import tied_layers
from bitexp.quant.layers import QuantizedLayer, quantized_layers
from bitexp.quant.options import NOTHING

Batch = tuple[Tensor, Tensor]
"""Inputs and targets."""
Loss = Callable[[Batch], Tensor]
"""The mean loss of a batch by the network as it is."""


@dataclass(frozen=True)
class Layer:
    """One layer that is allocated.

    Args:
        plain: in full precision, as the network calls it. quantized: its twin at each width.
        inputs, outputs: how many numbers come and go for one sample.
    """

    name: str
    plain: nn.Module
    quantized: Sequence[QuantizedLayer]
    inputs: int
    outputs: int

    @property
    def weights(self) -> int:
        """How many there are."""
        return self.quantized[0].weight.numel()


class Network:
    """The layers in the order in which they are called, with samples to measure on.

    Args:
        model: the network in full precision. quantized: the same, quantized at each width in all layers.
        bits: the widths, rising.
        loss: of a batch, by `model`. batches: what it is measured on.

    Raises:
        ValueError: a layer that the network does not call, or that a width does not quantize.
    """

    def __init__(
        self,
        model: nn.Module,
        quantized: Sequence[nn.Module],
        bits: Sequence[float],
        loss: Loss,
        batches: Sequence[Batch],
    ) -> None:
        self.model, self.bits, self._loss, self.batches = model.eval(), tuple(bits), loss, batches
        twins = [quantized_layers(other.eval()) for other in quantized]
        missing = {name for other in twins for name in {*twins[0]} ^ {*other}}
        if missing:
            raise ValueError(f"{', '.join(sorted(missing))}: not quantized at all of the widths")
        shapes = shapes_of(model, list(twins[0]), batches[0][0][:1])
        if passed := [name for name in twins[0] if name not in shapes]:
            raise ValueError(f"{', '.join(passed)}: the network does not call them")
        self.layers = [
            Layer(name, model.get_submodule(name), [other[name] for other in twins], *sizes)
            for name, sizes in shapes.items()
        ]

    @property
    def ties(self) -> list[list[int]]:
        """Layers that get the same width, by their places."""
        places = {layer.name: place for place, layer in enumerate(self.layers)}
        groups = ([places[n] for n in group if n in places] for group in tied_layers(self.model))
        return [group for group in groups if len(group) > 1]

    @contextmanager
    def allocated(self, chosen: Mapping[int, int]) -> Iterator[None]:
        """Within it these layers are quantized: a width by the layer's place; the others are not."""
        try:
            for place, width in chosen.items():
                layer = self.layers[place]
                vars(layer.plain)["forward"] = layer.quantized[width]  # past torch, which would own it
            yield
        finally:
            for place in chosen:
                vars(self.layers[place].plain).pop("forward", None)

    @torch.no_grad()
    def loss(self, chosen: Mapping[int, int] | None = None) -> float:
        """The mean loss over all samples, with some layers quantized."""
        with self.allocated(chosen or {}):
            sums = [float(self._loss(batch)) * len(batch[0]) for batch in self.batches]
        return sum(sums) / sum(len(batch[0]) for batch in self.batches)

    def losses(self) -> list[Callable[[], Tensor]]:
        """The loss in full precision, as a function for each batch of the first one's size."""
        same = [batch for batch in self.batches if len(batch[0]) == len(self.batches[0][0])]
        return [partial(self._loss, batch) for batch in same]

    def table(self, number: Callable[[int, int], float]) -> Table:
        """A number for each layer by its place, and each width."""
        return np.array([[number(i, j) for j in range(len(self.bits))] for i in range(len(self.layers))])

    def cost(self, of: Callable[[Layer, QuantizedLayer], float]) -> Table:
        """What each layer takes at each width."""
        return self.table(lambda i, j: of(self.layers[i], self.layers[i].quantized[j]))

    @torch.no_grad()
    def outputs(self) -> list[Tensor]:
        """What each layer gives out for the first batch, in full precision."""
        seen: dict[str, Tensor] = {}
        handles = [
            layer.plain.register_forward_hook(
                lambda module, inputs, output, name=layer.name: seen.setdefault(name, output)
            )
            for layer in self.layers
        ]
        try:
            self.model(self.batches[0][0])
        finally:
            for handle in handles:
                handle.remove()
        return [seen[layer.name] for layer in self.layers]

    def distances(self) -> Table:
        """Squared distances `|Q(W) - W|^2` of the weights from what they are quantized to."""
        return self.table(lambda i, j: distance(self.layers[i].quantized[j]))


@torch.no_grad()
def distance(layer: QuantizedLayer) -> float:
    """The squared distance of the weights from their quantized values, as they are quantized."""
    target = layer.rotated(layer.weight.detach()).double()
    return float((layer.quantized().dequantized().double() - target).square().sum())


@torch.no_grad()
def shapes_of(model: nn.Module, names: Sequence[str], sample: Tensor) -> dict[str, tuple[int, int]]:
    """How many numbers go into each layer and come out, all calls together, in the order of the first."""
    found: dict[str, tuple[int, int]] = {}

    def seen(name: str, inputs: tuple[Any, ...], output: Tensor) -> None:
        before = found.get(name, (0, 0))
        found[name] = (before[0] + inputs[0].numel(), before[1] + output.numel())

    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen(name, inputs, output)
        )
        for name in names
    ]
    try:
        model(sample)
    finally:
        for handle in handles:
            handle.remove()
    return found


def full_precision(section: Mapping[str, Any]) -> dict[str, Any]:
    """The section `quantizer` of a config for the same network without quantization: its norm stays."""
    plain = {key: {"name": word} for key, word in NOTHING.items()}
    rest = {"weights": {"name": "none"}, "bias": "plain", "output_norm": "none", "layers": [], "stages": []}
    return {**copy.deepcopy(dict(section)), **plain, **rest}
