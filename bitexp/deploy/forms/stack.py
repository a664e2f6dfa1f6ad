"""Stacks of residual one-bit blocks: any first part of the file is a network (BitStack, arXiv 2410.23918).

The weights of a layer are a sum of blocks, each of them the signs of what is left times a matrix of low rank.
All blocks of the network lie in one order, the most important first; so many bytes are so many first blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitexp.common.errors import UserError
from bitexp.common.format import size
from bitexp.deploy.forms.file import UNFIT, matrices, packed_signs, read_form, save_form, signs
from bitexp.deploy.packed_file import PackedFile

PARTS = {"header": dict, "order": list, "layers": dict}
BLOCK = ("signs", "left", "right")
Blocks = list[dict[str, Tensor]]
"""Of a layer: `signs` uint8 `[out, bytes]`, `left` fp16 `[out, rank]` and `right` fp16 `[rank, in]`."""


def decompose(weight: Tensor, columns: Tensor, count: int, rank: int) -> Blocks:
    """The blocks of a matrix `[out, in]`, the first ones first (section 2.1).

    Each has the signs of the rest, 0 as +1, and the best approximation of its magnitudes of a rank, as fp16
    factors that share the singular values. The rest of one is what the next one is made of.

    Args:
        columns: `[in]`, how much an error in each column counts: the norm of its activations.
    """
    rest, blocks = weight * columns, Blocks()
    for _ in range(count):
        packed = packed_signs(rest)
        u, s, v = torch.linalg.svd(rest.abs(), full_matrices=False)
        share = s[:rank].sqrt()
        block = {
            "signs": packed,
            "left": (u[:, :rank] * share).half(),
            "right": (share[:, None] * v[:rank]).half(),
        }
        blocks.append(block)
        rest = rest - block_values(block)
    return blocks


def block_values(block: Mapping[str, Tensor]) -> Tensor:
    """What a block adds to the weights `[out, in]` times `columns`."""
    magnitudes = block["left"].float() @ block["right"].float()
    return signs(block["signs"], magnitudes.shape[1]) * magnitudes


def composed(blocks: Sequence[Mapping[str, Tensor]], columns: Tensor, shape: Sequence[int]) -> Tensor:
    """The weights that some blocks make, added in their order."""
    total = torch.zeros(shape[0], columns.numel())
    for block in blocks:
        total = total + block_values(block)
    return (total / columns).reshape(*shape)


def in_order(losses: Mapping[str, Sequence[float]]) -> list[tuple[str, int]]:
    """All blocks by layer and number, the most important first.

    A block counts as much as the loss is without it and those on top of it (section 2.3). With `losses` of a
    layer that alone is cut to 0, 1, 2 ... blocks, block i counts `losses[layer][i]`, but no more than the
    blocks below it, on which it stands.
    """
    ranked = []
    for place, (layer, values) in enumerate(losses.items()):
        bound = float("inf")
        for number, loss in enumerate(values):
            bound = min(bound, loss)
            ranked.append((-bound, number, place, layer))
    return [(layer, number) for _, number, _, layer in sorted(ranked)]


@dataclass(frozen=True)
class Stack:
    """All blocks of a network, and what it has beside them.

    Args:
        header: of the packed file of the network. order: of the blocks, by layer and number.
        shapes: of the weights of each layer.
        tensors: of block `number` of a layer `LAYER.NUMBER.signs`, `.left` and `.right`; `LAYER.columns`; and
            all else of the network under its own name.
    """

    header: dict[str, Any]
    order: list[tuple[str, int]]
    shapes: dict[str, list[int]]
    tensors: dict[str, Tensor]

    def check(self) -> None:
        """Raises one of `UNFIT` where parts are missing, or do not fit together."""
        numbers = dict.fromkeys(self.shapes, 0)
        for layer, number in self.order:
            if number != numbers[layer]:
                raise ValueError(f"block {number} of {layer} is not on top of the others")
            numbers[layer] += 1
            rows, inputs = self.shapes[layer][0], self.tensors[f"{layer}.columns"].numel()
            left, right = (self.block(layer, number)[part] for part in ("left", "right"))
            if math.prod(self.shapes[layer][1:]) != inputs or left.shape != (rows, len(right)):
                raise ValueError(f"block {number} of {layer} is none of its layer")
            if right.shape[1:] != (inputs,):
                raise ValueError(f"block {number} of {layer} has not the columns of its layer")
        if not all(numbers.values()):
            raise ValueError("it has a layer without blocks")

    def block(self, layer: str, number: int) -> dict[str, Tensor]:
        """The tensors of a block."""
        return {part: self.tensors[f"{layer}.{number}.{part}"] for part in BLOCK}

    @property
    def rest(self) -> dict[str, Tensor]:
        """What is not of a block."""
        names = {f"{layer}.{number}.{part}" for layer, number in self.order for part in BLOCK}
        return {name: tensor for name, tensor in self.tensors.items() if name not in names}

    @property
    def extent(self) -> tuple[int, int]:
        """Bytes without any block, and with all of them."""
        return tuple(sum(t.nbytes for t in part.values()) for part in (self.rest, self.tensors))  # type: ignore[return-value]

    def prefix(self, limit: int | None = None) -> tuple[PackedFile, int, int]:
        """The network of as many first blocks as fit into so many bytes; None: of all.

        Returns:
            a packed file of floats, how many blocks they are made of, and the bytes of these and of all else.

        Raises:
            UserError: not even what is always there fits, or a block is damaged.
        """
        rest, used = self.rest, self.extent[0]
        if limit is not None and used > limit:
            raise UserError(
                f"{size(limit)} do not hold what the stack has beside its blocks, which takes {size(used)}"
            )
        chosen: dict[str, Blocks] = {layer: [] for layer in self.shapes}
        count = 0
        for layer, number in self.order:
            block = self.block(layer, number)
            taken = sum(tensor.nbytes for tensor in block.values())
            if limit is not None and used + taken > limit:
                break
            chosen[layer].append(block)
            used, count = used + taken, count + 1
        try:
            floats = {
                layer: composed(blocks, rest.pop(f"{layer}.columns"), self.shapes[layer])
                for layer, blocks in chosen.items()
            }
        except UNFIT as error:
            raise UserError(f"the stack has blocks that make no weights: {error}") from error
        return (self.header, {**rest, **floats}), count, used


def stacked(
    file: PackedFile,
    columns: Mapping[str, Tensor],
    loss: Callable[[PackedFile], float],
    count: int,
    rank: int,
    tell: Callable[[str], None] = lambda line: None,
) -> Stack:
    """The stack of a network in full precision.

    Args:
        columns: for each of `matrices` the norms `[in]` of its activations. loss: of such a network.
        count: blocks of a layer. rank: of their magnitudes. tell: gets a line about each layer.
    """
    header, tensors = file
    shapes = {name: list(tensors[name].shape) for name in matrices(header, tensors)}
    blocks, losses = {}, {}
    for name in shapes:
        blocks[name] = decompose(tensors[name].flatten(1), columns[name], count, rank)
    best = {name: composed(blocks[name], columns[name], shape) for name, shape in shapes.items()}
    for name, layer in blocks.items():
        cut = [composed(layer[:n], columns[name], shapes[name]) for n in range(count)]
        losses[name] = [loss((header, {**tensors, **best, name: weight})) for weight in cut]
        tell(f"{name}: loss with 0, 1, ... blocks {' '.join(f'{value:.3f}' for value in losses[name])}")
    kept = {name: tensor for name, tensor in tensors.items() if name not in blocks}
    kept |= {f"{name}.columns": columns[name] for name in blocks}
    for name, layer in blocks.items():
        for number, block in enumerate(layer):
            kept |= {f"{name}.{number}.{part}": tensor for part, tensor in block.items()}
    return Stack(header, in_order(losses), shapes, kept)


def save_stack(path: Path, stack: Stack) -> None:
    """Writes a stack."""
    header = {"header": stack.header, "order": [list(block) for block in stack.order], "layers": stack.shapes}
    save_form(path, "stack", header, stack.tensors)


def read_stack(path: Path) -> Stack:
    """Reads a stack. Raises `UserError` where there is none, or it is damaged."""
    header, tensors = read_form(path, "stack", PARTS)
    try:
        order = [(str(layer), int(number)) for layer, number in header["order"]]
        stack = Stack(header["header"], order, header["layers"], tensors)
        stack.check()
    except UNFIT as error:
        raise UserError(f"{path} does not describe a stack that can be built here: {error}") from error
    return stack
