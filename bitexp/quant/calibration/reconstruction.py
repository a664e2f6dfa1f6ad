"""Layer by layer, weights whose outputs are as near as can be to those of the network in full precision.

The squared error of a layer is quadratic in its weights, so that of all inputs two matrices are needed:

    E |y - W^ x^|^2 = E |y|^2 - 2 <W^, E y x^T> + <W^ E x^ x^T, W^>

`y = W x` is what the network in full precision computes there, `x^` what comes to the product of the
quantized one, rounded activations and all, from the layers that were calibrated before it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitexp.quant.calibration.base import Calibration, Told
from bitexp.quant.calibration.batch_norm import batch_norms, estimate
from bitexp.quant.layers import QuantizedLayer, quantized_layers, set_lambda, set_progress
from bitexp.quant.product import Quantized
from bitexp.quant.spec import Geometry


@dataclass
class Moments:
    """Means over all inputs of a layer in fp64; K are the inputs of an output, R the outputs of a group.

    gram: x^ x^T `[groups, K, K]`. cross: y x^T `[groups, R, K]`. power: y^2 `[groups, R]`. inputs, outputs:
    x^ `[groups, K]` and y `[groups, R]`.
    """

    gram: Tensor
    cross: Tensor
    power: Tensor
    inputs: Tensor
    outputs: Tensor

    @staticmethod
    def of(columns: Tensor, targets: Tensor) -> Moments:
        """Of x^ `[groups, K, positions]` and y `[groups, R, positions]`."""
        x, y = columns.double(), targets.double()
        n = x.shape[-1]
        return Moments(
            x @ x.mT / n, y @ x.mT / n, y.square().mean(-1), x.mean(-1), y.mean(-1)
        )  # fmt: skip

    def plus(self, other: Moments, share: float) -> Moments:
        """The mean of both, where the other has a share of all positions."""
        mine, theirs = vars(self), vars(other)
        return Moments(**{name: mine[name].lerp(theirs[name], share) for name in mine})

    def centered(self) -> Moments:
        """Without the means: what is left where the bias makes up for them."""
        x, y = self.inputs, self.outputs
        return Moments(
            self.gram - x[:, :, None] * x[:, None],
            self.cross - y[:, :, None] * x[:, None],
            self.power - y.square(),
            torch.zeros_like(x),
            torch.zeros_like(y),
        )

    def error(self, weight: Tensor) -> Tensor:
        """The mean squared error of each output `[groups, R]`, for weights `[groups, R, K]`."""
        weight = weight.to(self.gram.dtype)
        return self.power + (weight * (weight @ self.gram - 2 * self.cross)).sum(-1)

    def offset(self, weight: Tensor) -> Tensor:
        """How far the outputs are off in the mean `[groups, R]`: what a bias can make up for."""
        return self.outputs - (weight.to(self.gram.dtype) * self.inputs[:, None]).sum(-1)

    def to(self, dtype: torch.dtype) -> Moments:
        """The same in another precision."""
        return Moments(**{name: value.to(dtype) for name, value in vars(self).items()})


class Reconstruction(Calibration):
    """A calibration that chooses the codes of each quantized layer, one layer after the other.

    Args:
        iterations: steps of Adam for each layer.
        batch_norm: whether batch norms are estimated anew afterwards, as `calibrate=bn` does it.
    """

    def __init__(self, *, samples: int = 1024, iterations: int = 1000, batch_norm: bool = False) -> None:
        super().__init__(samples=samples)
        if iterations < 1:
            raise ValueError(f"iterations={iterations} must be at least 1")
        self.iterations, self.batch_norm = iterations, batch_norm

    moves_bias: ClassVar[bool] = False
    """Whether the bias of a layer, where it has one, makes up for the mean error of its outputs."""

    def choose(self, layer: QuantizedLayer, target: Tensor, moments: Moments) -> Quantized:
        """The codes and scales of a layer.

        Args:
            target: the weights in full precision, mapped as they are quantized, `[out, ...]`.
            moments: without the means where the bias will make up for these.
        """
        raise NotImplementedError

    def check(self, model: nn.Module) -> None:
        layers = quantized_layers(model)
        if not layers:
            raise ValueError(
                "there is no quantized layer to calibrate: choose a quantizer, or calibrate=none"
            )
        for name, layer in layers.items():
            if not layer.parts.weights.codes_are_free:
                raise ValueError(
                    f"layer {name}: codes are chosen one by one, and weights="
                    f"{layer.options.weights and layer.options.weights.name} has a rule for which may stand "
                    "for what; use calibrate=none or bn"
                )
        if self.batch_norm and not any(batch_norms(model)):
            raise ValueError("batch_norm=true needs batch norms, and this network has none")

    @torch.no_grad()
    def __call__(
        self, model: nn.Module, batches: Sequence[Tensor], told: Told = lambda *_: None
    ) -> dict[str, tuple[float, float]]:
        model.eval()
        set_lambda(model, 1.0)
        set_progress(model, 1.0)
        reference, layers = copy.deepcopy(model), quantized_layers(model)
        set_lambda(reference, 0.0)
        errors = {}
        for name in execution_order(reference, batches[0]):
            layer = layers[name]
            moments = measured(reference, model, name, batches)
            power = float(moments.power.sum().clamp(min=1e-30))
            target = layer.rotated(layer.weight.detach()).float()
            before = total_error(layer.quantized(), moments)
            judged = moments.centered() if self.moves_bias and layer.bias is not None else moments
            quantized = self.choose(layer, target, judged)
            layer.hold(quantized)
            errors[name] = (before / power, total_error(quantized, judged) / power)
            if layer.bias is not None and judged is not moments:
                offset = moments.offset(per_group(quantized.dequantized(), len(moments.gram)))
                layer.bias.add_(offset.flatten().to(layer.bias.dtype))
            told(name, *errors[name])
        if self.batch_norm:
            estimate(model, batches)
        return errors


def execution_order(model: nn.Module, batch: Tensor) -> list[str]:
    """The quantized layers by name, in the order in which a forward calls them."""
    called: dict[str, None] = {}
    layers = quantized_layers(model)
    handles = [
        layer.register_forward_pre_hook(lambda *_, name=name: called.setdefault(name))
        for name, layer in layers.items()
    ]
    try:
        model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return list(called)


class Reached(Exception):
    """The forward has come to the layer that it was for."""


@contextmanager
def inputs_of(layer: QuantizedLayer) -> Iterator[Callable[[nn.Module, Tensor], Tensor]]:
    """A function that gives the input of a layer in a network; the forward ends there."""

    def stop(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        raise Reached(arguments[0])

    def input_of(model: nn.Module, batch: Tensor) -> Tensor:
        try:
            model(batch)
        except Reached as reached:
            x: Tensor = reached.args[0]
            return x
        raise AssertionError("the layer was not called")

    handle = layer.register_forward_pre_hook(stop)
    try:
        yield input_of
    finally:
        handle.remove()


def measured(reference: nn.Module, model: nn.Module, name: str, batches: Sequence[Tensor]) -> Moments:
    """The moments of a layer, its first call in a forward; `reference` is the network in full precision."""
    full, layer = (quantized_layers(network)[name] for network in (reference, model))
    groups = 1 if layer.spec.conv is None else layer.spec.conv[3]
    weight = per_group(full.rotated(full.weight.detach()).float(), groups)
    moments, seen = None, 0
    with inputs_of(full) as of_full, inputs_of(layer) as of_layer:
        for batch in batches:
            targets = weight @ columns(full, full.prepared(of_full(reference, batch)))
            new = Moments.of(columns(layer, multiplied(layer, of_layer(model, batch))), targets)
            seen += targets.shape[-1]
            moments = new if moments is None else moments.plus(new, targets.shape[-1] / seen)
    assert moments is not None
    return moments


def multiplied(layer: QuantizedLayer, x: Tensor) -> Tensor:
    """What the product of a layer sees of its input x: normed, mapped and rounded, in fp32."""
    x, act = layer.prepared(x), layer.active.activations
    if act is None:
        return x
    return act.dequantized(*act.codes(x, Geometry(layer.spec.conv).scale_dims))


def columns(layer: QuantizedLayer, x: Tensor) -> Tensor:
    """Inputs of a product as `[groups, K, positions]`: tokens, or patches of images."""
    if layer.spec.conv is None:
        return x.reshape(-1, x.shape[-1]).T[None]
    stride, padding, dilation, groups = layer.spec.conv
    x = x if x.dim() == 4 else x[None]
    patches = F.unfold(x, layer.spec.shape[2:], dilation, padding, stride)  # [B, C * kernel, positions]
    return patches.transpose(0, 1).flatten(1).unflatten(0, (groups, -1))


def per_group(weight: Tensor, groups: int) -> Tensor:
    """`[out, ...]` as `[groups, R, K]`."""
    return weight.flatten(1).unflatten(0, (groups, -1))


def total_error(quantized: Quantized, moments: Moments) -> float:
    """The mean squared error of all outputs of a layer together."""
    return float(moments.error(per_group(quantized.dequantized(), len(moments.gram))).sum())
