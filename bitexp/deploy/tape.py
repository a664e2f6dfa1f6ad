"""The steps of a frozen network, for the compiled CPU program: written down once, with memory for each value.

Values share memory: that of one which no later step reads is taken again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bitexp.deploy.embeddings import held_codes
from bitexp.deploy.frozen import FrozenLayer
from bitexp.deploy.of_modules import OfModules
from bitexp.kernels.cpu import Packed
from bitexp.models.decoder import Decoder, rotation
from bitexp.quant.layers import BitLinear

LINE = 64


class CannotCompileError(ValueError):
    """A network, or a layer of it, that the compiled program has no step for; it says which and why."""


@dataclass(eq=False)
class Slot:
    """A value: rows (0: one per text) of fp32 features; its memory is found when the tape is finished."""

    rows: int
    features: int
    address: int = 0
    last: int = -1


Step = dict[str, Any]
"""Fields of `bitexp.kernels.cpu.program.STEP`; slots stand for their addresses."""


@dataclass
class Recorder(OfModules[Slot]):
    """See `bitexp.models.tape.Tape`.

    Args:
        names: of the layers, for messages.
        texts: how many texts are written at once at most.

    Attributes:
        scratch: bytes that the steps need beside the values.
        bytes: of the weights of layers, which every call reads.
        turn: address of the cosines and sines of all positions.
    """

    names: dict[int, str]
    texts: int = 1
    steps: list[Step] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    keep: list[Any] = field(default_factory=list)
    scratch: int = 0
    bytes: int = 0
    turn: int = 0
    source: Slot | None = None

    def slot(self, rows: int, features: int) -> Slot:
        """A new value."""
        self.slots.append(Slot(rows, features))
        return self.slots[-1]

    def step(self, operation: str, out: Slot, rows: int, **fields: Any) -> Slot:
        """Writes a step down; `rows` are those that it works on."""
        for value in (*fields.values(), out):
            if isinstance(value, Slot):
                value.last = len(self.steps)
        self.steps.append({"operation": operation, "rows": rows, "out": out, **fields})
        return out

    def tensor(self, tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> int:
        """The address of a tensor's numbers; 0 for none."""
        if tensor is None:
            return 0
        if tensor.dtype != dtype or not tensor.is_cpu:
            raise CannotCompileError(f"its numbers are {tensor.dtype} on {tensor.device}")
        self.keep.append(tensor.detach().contiguous())
        return int(self.keep[-1].data_ptr())

    def embed(self, table: nn.Module) -> Slot:
        weight = self.checked(table, nn.Embedding).weight
        out = self.slot(0, weight.shape[1])
        return self.step("embed", out, 0, weight=self.tensor(weight), outputs=out.features)

    def inputs(self, features: int) -> Slot:
        self.source = self.slot(1, features)
        return self.source

    def image(self, channels: int, height: int, width: int) -> Slot:
        raise CannotCompileError("convolutions have no step")

    def linear(self, layer: nn.Module, x: Slot) -> Slot:
        if isinstance(layer, FrozenLayer):
            return self.frozen(layer, x)
        if isinstance(layer, BitLinear) and layer.options.weights is None:
            x, floats = self.own_norm(layer.spec, x), layer
        else:
            floats = self.checked(layer, nn.Linear)
        out = self.slot(x.rows, len(floats.weight))
        weight, scale = held_codes(floats.weight.detach()) or (floats.weight, None)
        kind = torch.float32 if scale is None else torch.int8
        addresses = {"weight": self.tensor(weight, kind), "scale": self.tensor(scale)}
        addresses["bias"] = self.tensor(floats.bias)
        self.bytes += weight.nbytes
        return self.step("dense", out, x.rows, x=x, inputs=x.features, outputs=out.features, **addresses)

    def frozen(self, layer: FrozenLayer, x: Slot) -> Slot:
        """A layer that the CPU kernel multiplies as it is packed."""
        from bitexp.kernels.cpu.layer import address

        spec, prepared = layer.spec, layer.prepared
        if not isinstance(prepared, Packed):
            raise CannotCompileError(
                f"the layer {self.name(layer)} is not multiplied packed by the kernel cpu"
            )
        if spec.absmax is None or not layer.kernel_makes_codes or spec.transform or spec.sparsifier:
            raise CannotCompileError(f"the kernel does not make the activation codes of {self.name(layer)}")
        if spec.output_norm != "none":
            raise CannotCompileError(f"the layer {self.name(layer)} has a norm of its output")
        x = self.own_norm(spec, x)
        out = self.slot(x.rows, prepared.outputs)
        self.keep.append(prepared)
        self.scratch, self.bytes = max(self.scratch, prepared.scratch), self.bytes + prepared.weights.nbytes
        return self.step(
            "layer", out, x.rows, x=x, inputs=prepared.inputs, outputs=prepared.outputs,
            weight=prepared.weights.data_ptr(), scale=prepared.scales.data_ptr(),
            bias=self.tensor(layer.bias), code=address(prepared.isa, prepared.bits), absmax=spec.absmax,
            scaled=int(spec.bias == "scaled"), streams=prepared.streams,
        )  # fmt: skip

    def normed(
        self, x: Slot, subtract: bool, eps: float, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> Slot:
        """The norm of x, taken once for all that want the same."""
        addresses = {"weight": self.tensor(weight), "bias": self.tensor(bias)}
        wanted = {"x": x, "inputs": x.features, "kind": int(subtract), "eps": eps, **addresses}
        for index, step in enumerate(self.steps):
            if step["operation"] == "norm" and all(step[name] == value for name, value in wanted.items()):
                out: Slot = self.steps[index]["out"]
                return out
        return self.step("norm", self.slot(x.rows, x.features), x.rows, **wanted)

    def activate(self, name: str, x: Slot) -> Slot:
        out = self.slot(x.rows, x.features)
        return self.step("activate", out, x.rows, x=x, inputs=x.features, kind=activation(name))

    def gated(self, name: str, gate: Slot, up: Slot) -> Slot:
        out = self.slot(up.rows, up.features)
        return self.step("gated", out, up.rows, x=gate, y=up, inputs=up.features, kind=activation(name))

    def add(self, x: Slot, y: Slot | Tensor) -> Slot:
        other = y if isinstance(y, Slot) else self.tensor(y)
        return self.step("add", self.slot(x.rows, x.features), x.rows, x=x, y=other, inputs=x.features)

    def attend(self, q: Slot, k: Slot, v: Slot, layer: int, model: Decoder) -> Slot:
        if model.qk_norm:
            raise CannotCompileError("norms of single heads have no step")
        size, context, kv_heads = model.head_dim, model.context, model.kv_heads
        if not self.turn:
            angles = rotation(0, context, size, model.rope_base, model.embed.weight)
            self.turn = self.tensor(torch.stack(angles))
        self.scratch = max(self.scratch, 4 * (size + context))
        sizes = {"heads": q.features // size, "kv_heads": kv_heads, "size": size, "context": context}
        out = self.slot(q.rows, q.features)
        return self.step("attend", out, q.rows, x=q, y=k, z=v, weight=self.turn, block=layer, **sizes)

    def attend_all(self, qkv: Slot, heads: int) -> Slot:
        out = self.slot(qkv.rows, qkv.features // 3)
        size = out.features // heads
        self.scratch = max(self.scratch, 4 * qkv.rows * (2 * size + 1))
        return self.step("attend_all", out, qkv.rows, x=qkv, heads=heads, size=size)

    def gather(self, x: Slot, index: Tensor) -> Slot:
        out = self.slot(*index.shape)
        place = self.tensor(index, torch.int64)
        return self.step("gather", out, out.rows, x=x, index=place, inputs=x.features, outputs=out.features)

    def prepend(self, row: Tensor, x: Slot) -> Slot:
        out = self.slot(x.rows + 1, x.features)
        return self.step("prepend", out, out.rows, x=x, weight=self.tensor(row), inputs=x.features)

    def mean(self, x: Slot) -> Slot:
        return self.step("mean", self.slot(1, x.features), x.rows, x=x, inputs=x.features)

    def first(self, x: Slot) -> Slot:
        return self.step("mean", self.slot(1, x.features), 1, x=x, inputs=x.features)

    def refusal(self, text: str) -> ValueError:
        return CannotCompileError(text)

    def finish(self, result: Slot) -> Any:
        """The steps as records, every value with its memory; the result's and the input's are their own."""
        import numpy as np

        from bitexp.kernels.cpu.program import OPERATIONS, STEP

        memory = Memory()
        for slot in (result, self.source):
            if slot is not None:
                memory.take(slot, self.size(slot))
                slot.last = len(self.steps)
        for place, step in enumerate(self.steps):
            out = step["out"]
            if out.address == 0 and out is not result and out is not self.source:
                memory.take(out, self.size(out))
            memory.release({id(v): v for v in step.values() if isinstance(v, Slot) and v.last <= place})
        self.keep.append(memory.place(self.slots))
        records = np.zeros(len(self.steps), STEP)
        for record, step in zip(records, self.steps, strict=True):
            for name, value in step.items():
                if name == "operation":
                    value = OPERATIONS.index(value)
                record[name] = value.address if isinstance(value, Slot) else value
        return records

    def size(self, slot: Slot) -> int:
        """Bytes of a value, in whole lines."""
        return -(-4 * (slot.rows or self.texts) * slot.features // LINE) * LINE


class Memory:
    """Places for values in one piece of memory, taken again when they are free."""

    def __init__(self) -> None:
        self.free: list[tuple[int, int]] = []  # (bytes, place)
        self.taken: dict[int, tuple[int, int]] = {}  # by id of the slot
        self.end = 0

    def take(self, slot: Slot, size: int) -> None:
        """The smallest free place that is large enough, or a new one."""
        fitting = [place for place in self.free if place[0] >= size]
        if fitting:
            place = min(fitting)
            self.free.remove(place)
        else:
            place = (size, self.end)
            self.end += size
        self.taken[id(slot)] = place
        slot.address = -1  # has a place

    def release(self, slots: dict[int, Slot]) -> None:
        """Values that no later step reads."""
        self.free += [self.taken[key] for key in slots]

    def place(self, slots: list[Slot]) -> Tensor:
        """Sets the addresses of all values; returns the memory, which they need as long as they are used."""
        memory = torch.zeros(self.end + LINE, dtype=torch.uint8)
        start = memory.data_ptr() + -memory.data_ptr() % LINE
        for slot in slots:
            if id(slot) in self.taken:
                slot.address = start + self.taken[id(slot)][1]
        return memory


def activation(name: str) -> int:
    """The number of an activation."""
    from bitexp.kernels.cpu.ops import ACTIVATIONS

    return ACTIVATIONS[name]
