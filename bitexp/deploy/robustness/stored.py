"""A packed model whose stored bits can be flipped, in its tensors as the file has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor, nn

from bitexp.deploy.frozen import FrozenLayer, Packing
from bitexp.deploy.packed_file import owner_names
from bitexp.deploy.packing import Layout
from bitexp.kernels.reference import Reference
from bitexp.quant.product import Quantized

Reading = Literal["value", "clamp"]
"""How digits that no code has are read: as the integer that they come to, or as the highest code."""


@dataclass(frozen=True)
class Unchecked(Layout):
    """A layout that reads whatever bytes there are."""

    reading: Reading = "value"

    @staticmethod
    def of(layout: Layout, reading: Reading) -> Unchecked:
        """A layout without its checks."""
        own = {field.name: getattr(layout, field.name) for field in fields(Layout)}
        return Unchecked(**own, reading=reading)

    def unpack(self, packed: Tensor, inputs: int) -> Tensor:
        return self.unpack_unchecked(packed, inputs, self.reading == "clamp")


@dataclass(frozen=True)
class Place:
    """A bit: the tensor it is in, the byte there, and which of the byte's bits, 0 the lowest."""

    tensor: str
    byte: int
    bit: int


class Stored:
    """The bytes of a packed model.

    Args:
        model: loaded by `load_packed`; flips change it.
        body: its quantized layers; where they are in full precision, their weights are the codes.
    """

    def __init__(self, model: nn.Module, body: list[str]) -> None:
        self.model = model
        self.layers = {n: m for n, m in model.named_modules() if isinstance(m, FrozenLayer)}
        for layer in self.layers.values():
            layer.use(Reference())
        state, owners = model.state_dict(), owner_names(model)
        self.tensors = {name: state[name] for name in dict.fromkeys(owners.values())}
        self.owners = owners
        weights = [f"{name}.{'packed' if name in self.layers else 'weight'}" for name in body]
        self.codes = [name for name in weights if name in self.tensors]

    @property
    def names(self) -> list[str]:
        """All tensors of the file."""
        return list(self.tensors)

    def bits(self, names: list[str]) -> int:
        """How many bits some tensors have."""
        return sum(8 * self.tensors[name].nbytes for name in names)

    def relaid(self, layout: str) -> None:
        """Packs the codes anew, by the name of a layout.

        Raises:
            ValueError: it cannot hold them, or there are none.
        """
        if not self.layers:
            raise ValueError("it has no codes: it is in full precision")
        for name, layer in self.layers.items():
            codes = layer.quantized().codes
            packing = Packing.of(layout, layer.spec)
            layer.packed = packing.layout.pack(codes.flatten(codes.dim() - len(layer.spec.shape) + 1))
            layer.packing = packing
            self.tensors[f"{name}.packed"] = layer.packed

    @property
    def gaps(self) -> bool:
        """Whether there are bytes that no codes make."""
        layouts = [layer.packing.layout for layer in self.layers.values()]
        return any(256**layout.bytes > layout.used**layout.digits for layout in layouts)

    def read_as(self, reading: Reading) -> None:
        """Has bytes that no codes make be read in some way, instead of refused."""
        for layer in self.layers.values():
            layer.packing = replace(layer.packing, layout=Unchecked.of(layer.packing.layout, reading))

    def flip(self, places: list[Place]) -> None:
        """Flips bits; the same again restores them."""
        for place in places:
            memory_of(self.tensors[place.tensor])[place.byte] ^= 1 << place.bit
        for name in {place.tensor.rpartition(".")[0] for place in places} & set(self.layers):
            self.layers[name].use(self.layers[name].kernel)  # which may have a copy

    def place(self, names: list[str], number: int) -> Place:
        """A bit by its number among those of some tensors."""
        for name in names:
            count = 8 * self.tensors[name].nbytes
            if number < count:
                return Place(name, *divmod(number, 8))
            number -= count
        raise IndexError(number)

    def gains(self, name: str, gradients: Mapping[str, Tensor]) -> Tensor:
        """By how much flipping each bit of a tensor alone raises the loss, to first order: `[bytes, 8]`.

        The rise is the gradient times the change. A change that is no finite number counts as infinite.
        """
        tensor, gradient = self.tensors[name], gradients[name]
        layer = self.layers.get(name.removesuffix(".packed"))
        if layer is None or not name.endswith(".packed"):
            return float_gains(tensor, gradient)
        layout = layer.packing.layout
        inputs = math.prod(layer.spec.shape[1:])
        codes, per_number = layer.quantized().codes, layout.digits * layout.length
        old = layout.in_order(codes.flatten(codes.dim() - len(layer.spec.shape) + 1).float())
        slope = layout.in_order(gradient.flatten(codes.dim() - len(layer.spec.shape) + 1))
        gains = tensor.new_zeros(*tensor.shape, 8, dtype=torch.float32)
        for lane in range(layout.bytes):
            for bit in range(8):
                flipped = tensor.clone()
                flipped[:, lane :: layout.bytes] ^= 1 << bit
                new = layout.in_order(layout.unpack(flipped, inputs).float())
                rise = (new - old) * slope
                rise = torch.nn.functional.pad(rise, (0, -rise.shape[1] % per_number))
                rise = rise.unflatten(1, (-1, per_number)).sum(-1)
                gains[:, lane :: layout.bytes, bit] = rise
        return gains.flatten(0, 1)


class Gradients:
    """Gathers the gradients of a loss in what is stored.

    with Gradients(stored) as gradients:
        loss = ...
    gradients.of(loss)["head.weight"]
    """

    def __init__(self, stored: Stored) -> None:
        self.stored = stored
        self.leaves: dict[str, Tensor] = {}

    def __enter__(self) -> Gradients:
        for name, layer in self.stored.layers.items():
            quantized = layer.quantized()
            codes = quantized.codes.float().requires_grad_()
            scale = layer.scale.detach().clone().requires_grad_()
            shift = None if layer.shift is None else layer.shift.detach().clone().requires_grad_()
            layer.differentiated = dequantized(codes, scale, shift)
            self.leaves[f"{name}.packed"], self.leaves[f"{name}.scale"] = codes, scale
            if shift is not None:
                self.leaves[f"{name}.shift"] = shift
        for name, parameter in self.stored.model.named_parameters():
            if name in self.stored.tensors:
                self.leaves[name] = parameter.requires_grad_()
        return self

    def __exit__(self, *error: object) -> None:
        for layer in self.stored.layers.values():
            layer.differentiated = None

    def of(self, loss: Tensor) -> dict[str, Tensor]:
        """By the name of a tensor; without those that the loss does not follow."""
        names = list(self.leaves)
        found = torch.autograd.grad(loss, [self.leaves[name] for name in names], allow_unused=True)
        return {name: grad for name, grad in zip(names, found, strict=True) if grad is not None}


def dequantized(codes: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """`Quantized.dequantized`, with a gradient."""
    if codes.dim() % 2:  # planes
        each = scale.reshape(*scale.shape, *[1] * (codes.dim() - scale.dim()))
        weights = (codes * each).sum(0)
    else:
        weights = codes * Quantized(codes, scale).spread_scale()
    return weights if shift is None else weights + shift.reshape(-1, *[1] * (weights.dim() - 1))


def float_gains(tensor: Tensor, gradient: Tensor) -> Tensor:
    """`Stored.gains` of fp32 numbers."""
    old = tensor.detach().flatten().view(torch.int32)
    masks = torch.tensor([1 << bit for bit in range(31)] + [-(2**31)], dtype=torch.int32)
    change = (old[:, None] ^ masks).view(torch.float32) - tensor.detach().flatten()[:, None]
    slope = gradient.flatten()[:, None]
    gains = torch.where(slope == 0, 0.0, change * slope)  # [numbers, 32]
    gains = torch.where(change.isfinite() | (slope == 0), gains, torch.inf)
    return gains.reshape(-1, 8)  # the lowest byte comes first


def memory_of(tensor: Tensor) -> Tensor:
    """A tensor's bytes `[n]`, in its own memory."""
    return tensor.detach().reshape(-1).view(torch.uint8)
