"""A network as calls of C functions: what a tape plays (`bitexp.models.tape`), written down in C.

Values share one array of floats: the place of one that no later call reads is taken again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bitexp.deploy.embeddings import held_codes
from bitexp.deploy.exporters.c_values import Call, Over, Value, array_text, free_place, number_text
from bitexp.deploy.exporters.exporter import InexpressibleError, spec_of
from bitexp.deploy.frozen import FrozenLayer
from bitexp.deploy.of_modules import OfModules
from bitexp.deploy.packing import Layout, layout_of
from bitexp.models.decoder import Decoder, rotation
from bitexp.quant.layers import QuantizedLayer
from bitexp.quant.modes import own
from bitexp.quant.spec import EPS, ConvArgs

ROWS = {2: "pack1", 3: "pack5", 4: "pack2", 16: "pack4", 256: "pack8"}
"""The layout whose digits have that base, for which there is a function."""
READ_PIXELS = {"linear_pixels", "gather_pixels", "pixels"}
"""The functions that take an input in bytes."""
LONGEST = 2**31 // (127 * 255)
"""Codes whose sum a 32-bit integer holds, whatever they are."""


@dataclass
class CTape(OfModules[Value]):
    """See `bitexp.models.tape.Tape`.

    Args:
        names: of the layers, by the id of the module. fast: codes in bits that are unpacked quickly, not in
            the fewest. pixels: the input is an image in bytes.

    Attributes:
        constants: C declarations. functions: that are called. codes, patch, weights: how many numbers are
        needed beside the values, of activation codes, of a convolution's window, of attention. state: floats
        that stay between calls.
    """

    names: dict[int, str]
    fast: bool = False
    pixels: bool = False
    calls: list[Call] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)
    names_of_constants: dict[Any, str] = field(default_factory=dict)
    functions: set[str] = field(default_factory=set)
    codes: int = 0
    patch: int = 0
    weights: int = 0
    state: list[tuple[str, int]] = field(default_factory=list)
    source: Value | None = None
    unpacked: Value | None = None
    token: bool = False

    def value(self, rows: int, features: int, height: int = 0, width: int = 0) -> Value:
        """A new one."""
        self.values.append(Value(max(1, rows), features, height, width))
        return self.values[-1]

    def call(
        self, function: str, out: Value, *arguments: Any, uses: Sequence[str] = (), over: Over = None
    ) -> Value:
        """Writes a call down.

        Args:
            uses: other functions that it needs.
            over: whether its result may lie over an argument that nobody reads later: `place`, number by
                number, or `whole`, since all of the argument is read before a number is written.
        """
        if function not in READ_PIXELS:
            arguments = tuple(self.floats(a) if isinstance(a, Value) else a for a in arguments)
        for argument in (*arguments, out):
            if isinstance(argument, Value):
                argument.last = len(self.calls)
        self.functions |= {function, *uses}
        self.calls.append(Call(function, list(arguments), out, over))
        return out

    def floats(self, x: Value) -> Value:
        """x, of pixels a copy in floats, once for all that cannot read them as they are."""
        if not self.pixels or x is not self.source:
            return x
        if self.unpacked is None:
            self.unpacked = self.call("pixels", self.value(x.rows, x.features, x.height, x.width), x, x.size)
        return self.unpacked

    def constant(self, kind: str, tensor: Tensor | None) -> str:
        """A constant array's name; NULL for none."""
        if tensor is None:
            return "NULL"
        numbers = tensor.detach().cpu().contiguous().flatten().tolist()
        key = kind, tuple(numbers)
        if key not in self.names_of_constants:
            name = self.names_of_constants[key] = f"c{len(self.constants)}"
            texts = [number_text(v) if kind == "float" else str(v) for v in numbers]
            self.constants.append(array_text(f"static const {kind} {name}[{len(numbers)}]", texts))
        return self.names_of_constants[key]

    def embed(self, table: nn.Module) -> Value:
        weight = self.checked(table, nn.Embedding).weight
        self.token = True
        out = self.value(1, weight.shape[1])
        codes = held_codes(weight.detach())
        if codes is None:
            return self.call("lookup", out, self.constant("float", weight), "token", out.features)
        names = self.constant("int8_t", codes[0]), self.constant("float", codes[1])
        return self.call("lookup8", out, *names, "token", out.features)

    def inputs(self, features: int) -> Value:
        self.source = self.value(1, features)
        return self.source

    def image(self, channels: int, height: int, width: int) -> Value:
        self.source = self.value(channels, height * width, height, width)
        return self.source

    def linear(self, layer: nn.Module, x: Value) -> Value:
        spec = spec_of(layer)
        if isinstance(layer, FrozenLayer):
            self.check(layer)
            self.codes = max(self.codes, x.features)
            out = self.value(x.rows, layer.spec.shape[0])
            rest = ["q", *self.packed(layer)]
            if self.pixels and x is self.source:
                norm = layer.spec.norm
                normed = [int(norm != "none"), int(norm == "layer"), number_text(EPS)]
                return self.call("linear_pixels", out, x, x.features, out.features, *normed, *rest)
            x = self.own_norm(layer.spec, x)
            over: Over = "whole" if x.rows == 1 else "place"
            sizes = x.rows, x.features, out.features
            return self.call("linear", out, x, *sizes, *rest, over=over)
        if spec is not None:
            x = self.own_norm(spec, x)
        floats: Any = layer if spec is not None else self.checked(layer, nn.Linear)
        weight = own(floats, "weight").detach()
        out = self.value(x.rows, len(weight))
        sizes, bias = (x.rows, x.features, out.features), self.constant("float", own(floats, "bias"))
        codes = held_codes(weight)
        if codes is None:
            return self.call("dense", out, x, *sizes, self.constant("float", weight), bias)
        names = self.constant("int8_t", codes[0]), self.constant("float", codes[1])
        return self.call("dense8", out, x, *sizes, *names, bias)

    def convolve(self, layer: nn.Module, x: Value) -> Value:
        spec = spec_of(layer)
        if spec is not None:
            x = self.own_norm(spec, x)
        shape, conv = conv_of(layer)
        (s0, s1), (p0, p1), (d0, d1), groups = conv
        rows = (x.height + 2 * p0 - d0 * (shape[2] - 1) - 1) // s0 + 1
        columns = (x.width + 2 * p1 - d1 * (shape[3] - 1) - 1) // s1 + 1
        out = self.value(shape[0], rows * columns, rows, columns)
        numbers = [
            x.rows,
            x.height,
            x.width,
            shape[0],
            rows,
            columns,
            shape[2],
            shape[3],
            s0,
            s1,
            p0,
            p1,
            d0,
            d1,
        ]
        self.functions.add("conv_shape")
        name = f"s{len(self.constants)}"
        self.constants.append(
            f"static const conv_shape {name} = {{{', '.join(map(str, [*numbers, groups]))}}};"
        )
        if isinstance(layer, FrozenLayer):
            self.check(layer)
            self.codes = max(self.codes, x.size)
            self.patch = max(self.patch, math.prod(shape[1:]))
            rest = [f"&{name}", "q", "patch", *self.packed(layer)]
            return self.call("convolve", out, x, *rest, over="whole")
        floats: Any = layer if spec is not None else self.checked(layer, nn.Conv2d)
        weight, bias = own(floats, "weight"), own(floats, "bias")
        names = self.constant("float", weight), self.constant("float", bias)
        return self.call("convolve_floats", out, x, f"&{name}", *names)

    def check(self, layer: FrozenLayer) -> None:
        """Raises `InexpressibleError` for a layer that is more than codes times scales."""
        check_layer(self.name(layer), layer)
        if layer.scale.dim() == 2:
            raise InexpressibleError(
                f"{self.name(layer)} has a scale for each group, and C code one for a row"
            )

    def layout(self, layer: FrozenLayer) -> tuple[str, Layout]:
        """How codes lie: in the fewest bits, or, to be fast, no three levels in a byte of five."""
        count = layer.spec.levels.count
        base = min(base for base in ROWS if base >= count and not (self.fast and base == 3))
        return ROWS[base], layout_of(ROWS[base], layer.spec.levels)

    def packed(self, layer: FrozenLayer) -> list[Any]:
        """The arguments that are the layer's own, from the largest activation code on."""
        name, layout = self.layout(layer)
        quantized = layer.quantized()
        packed = layout.pack(quantized.codes.flatten(1))
        self.functions.add(f"row_{name}")
        return [
            f"{layer.spec.absmax}.0f", f"row_{name}", self.constant("uint8_t", packed), packed.shape[1],
            layout.low, layout.stride, self.constant("float", quantized.scale),
            int(quantized.scale.dim() > 0), self.constant("float", layer.bias),
            int(layer.spec.bias == "scaled"),
        ]  # fmt: skip

    def normed(
        self, x: Value, centered: bool, eps: float, gain: Tensor | None = None, bias: Tensor | None = None
    ) -> Value:
        """The norm of x over features, of an image over channels; once for all that want the same."""
        along = (x.features, 1, x.rows, x.features) if x.height else (x.rows, x.features, x.features, 1)
        names, x = ("NULL", "NULL"), self.floats(x)
        if gain is not None:
            names = (self.constant("float", gain), self.constant("float", bias))
        arguments = [x, *along, int(centered), number_text(eps), *names]
        for call in self.calls:
            if call.function == "norm" and call.arguments == arguments:
                return call.out
        out = self.value(x.rows, x.features, x.height, x.width)
        return self.call("norm", out, *arguments, over="place")

    def batch_norm(self, norm: nn.Module, x: Value) -> Value:
        kind = self.checked(norm, nn.BatchNorm2d)
        gain = (kind.weight.double() if kind.affine else 1.0) / (kind.running_var.double() + kind.eps).sqrt()
        bias = (kind.bias.double() if kind.affine else 0.0) - kind.running_mean.double() * gain
        names = self.constant("float", gain.float()), self.constant("float", bias.float())
        out = self.value(x.rows, x.features, x.height, x.width)
        return self.call("affine", out, x, x.rows, x.features, *names, over="place")

    def max_pool(self, x: Value, size: int) -> Value:
        height, width = x.height // size, x.width // size
        out = self.value(x.rows, height * width, height, width)
        return self.call("max_pool", out, x, x.rows, x.height, x.width, size, over="place")

    def mean_pixels(self, x: Value) -> Value:
        return self.call("means", self.value(1, x.rows), x, x.rows, x.features, over="place")

    def activate(self, name: str, x: Value) -> Value:
        out = self.value(x.rows, x.features, x.height, x.width)
        return self.call("activate", out, x, x.size, name, uses=[name], over="place")

    def gated(self, name: str, gate: Value, up: Value) -> Value:
        out = self.value(up.rows, up.features)
        return self.call("gated", out, gate, up, up.size, name, uses=[name], over="place")

    def add(self, x: Value, y: Value | Tensor) -> Value:
        other = y if isinstance(y, Value) else self.constant("float", y)
        return self.call("add", self.value(x.rows, x.features), x, other, x.size, over="place")

    def attend(self, q: Value, k: Value, v: Value, layer: int, model: Decoder) -> Value:
        if model.qk_norm:
            raise InexpressibleError("norms of single heads have no C code")
        size, width = model.head_dim, model.kv_heads * model.head_dim
        like = torch.zeros(())
        cosine, sine = (t[:, : size // 2] for t in rotation(0, model.context, size, model.rope_base, like))
        if not self.state:
            self.turn = self.constant("float", cosine), self.constant("float", sine)
        for name in ("keys", "values"):
            self.state.append((f"{name}{layer}", model.context * width))
        self.weights = max(self.weights, model.context)
        heads = q.features // size
        return self.call(
            "attend", self.value(1, q.features), q, k, v, "place", heads, model.kv_heads, size, *self.turn,
            f"keys{layer}", f"values{layer}", "weights",
        )  # fmt: skip

    def attend_all(self, qkv: Value, heads: int) -> Value:
        out = self.value(qkv.rows, qkv.features // 3)
        self.weights = max(self.weights, qkv.rows)
        return self.call("attend_all", out, qkv, qkv.rows, heads, out.features // heads, "weights")

    def gather(self, x: Value, index: Tensor) -> Value:
        if int(index.max()) >= 2**16:
            raise InexpressibleError(
                "images of more than 65,536 numbers are beyond C code's tables of places"
            )
        out = self.value(*index.shape)
        function = "gather_pixels" if self.pixels and x is self.source else "gather"
        return self.call(function, out, x, self.constant("uint16_t", index), out.size)

    def prepend(self, row: Tensor, x: Value) -> Value:
        out = self.value(x.rows + 1, x.features)
        return self.call("prepend", out, x, self.constant("float", row), x.size, x.features)

    def mean(self, x: Value) -> Value:
        return self.call("mean_row", self.value(1, x.features), x, x.rows, x.features, over="place")

    def first(self, x: Value) -> Value:
        return self.call("mean_row", self.value(1, x.features), x, 1, x.features, over="place")

    def refusal(self, text: str) -> ValueError:
        return InexpressibleError(f"{text}, which has no C code")

    def places(self, result: Value) -> int:
        """Gives every value a place in an array of floats, and returns its length.

        The input and the result have none: they are the caller's.
        """
        result.last = len(self.calls)
        taken: list[Value] = []
        end = 0
        for number, call in enumerate(self.calls):
            if (out := call.out) is result:
                continue
            taken = [value for value in taken if value.last >= number]
            under = [value for value in taken if value.last == number and value in call.arguments]
            if call.over == "place":
                under = [value for value in under if value.size >= out.size][:1]
            elif call.over is None:
                under = []
            taken = [value for value in taken if value not in under]
            out.place = under[0].place if call.over == "place" and under else free_place(out.size, taken)
            taken.append(out)
            end = max(end, out.place + out.size)
        return end


def check_layer(name: str, layer: FrozenLayer | QuantizedLayer) -> None:
    """Raises `InexpressibleError` for a layer that is more than codes times scales with int8 activations."""
    spec = layer.spec
    for what, there in (
        ("a transform of its inputs", spec.transform is not None),
        ("a sparsifier", spec.sparsifier is not None),
        ("shifted weights", spec.shift),
        ("weights of several planes", spec.levels.planes > 1),
        ("codes that come in words", spec.levels.words is not None),
        ("a norm of its outputs", spec.output_norm != "none"),
        ("activations other than int8 by their largest", spec.absmax is None),
        ("too many inputs for 32-bit sums", math.prod(spec.shape[1:]) > LONGEST),
    ):
        if there:
            raise InexpressibleError(f"{name} has {what}, for which there is no C code")


def conv_of(layer: nn.Module) -> tuple[tuple[int, ...], ConvArgs]:
    """The shape of a convolution's weights, and its arguments."""
    if (spec := spec_of(layer)) is not None:
        assert spec.conv is not None
        return spec.shape, spec.conv
    assert isinstance(layer, nn.Conv2d)
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise InexpressibleError("C code pads convolutions with zeros, by numbers")
    pair = [(int(v[0]), int(v[1])) for v in (layer.stride, layer.padding, layer.dilation)]
    return tuple(layer.weight.shape), (pair[0], pair[1], pair[2], layer.groups)
