"""An ONNX graph of any model: torch's own exporter, then codes in as many bits as they need.

Norms, activation codes, sums of codes and scales are written out as standard operators in the order that
bitexp has them, so that the integers are the same.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bitexp.common.errors import UserError
from bitexp.deploy.exporters.exporter import EXPORTERS, Exported, Exporter, Packed
from bitexp.deploy.exporters.torch_program import Alone, example_of, words_of
from bitexp.models.decoder import Decoder

OPSET = 25
"""The first with two-bit integers that ONNX Runtime runs; at 28 it has no kernel for them yet."""
SMALL = {"INT2": (-2, 1), "INT4": (-8, 7)}
"""Integers of few bits, by their name in ONNX, and what they hold."""


@EXPORTERS.register("onnx")
class OnnxGraph(Exporter):
    """model.onnx. That of a decoder keeps keys and values between calls.

    Args:
        weights: `packed` stores codes in 2, 4 or 8 bits, `int8` in 8, which older engines read too.
        license: for the README.
    """

    engine: ClassVar[str] = "onnxruntime"

    def __init__(self, *, weights: Literal["packed", "int8"] = "packed", license: str = "unknown") -> None:
        self.weights, self.license = weights, license

    def check(self, model: nn.Module, tokenizer: str | None = None) -> None:
        """Every model of bitexp can go there."""

    def write(self, packed: Packed, folder: Path) -> Exported:
        ir = library()
        call = call_of(packed.model, packed.preprocessing)
        with torch.no_grad(), quietly():
            program: Any = torch.onnx.export(dynamo=True, verbose=False, **vars(call))
        graph = program.model
        if self.weights == "packed" and pack_codes(graph, ir):
            graph.opset_imports[""] = OPSET
        strip(graph)
        ir.save(graph, folder / "model.onnx")
        return Exported(
            [
                "Norms, activation codes, sums of codes and scales are the same operations in the same "
                "order.",
                "Products of floats and functions such as softmax differ in their last bits.",
                "Without the session option above ONNX Runtime rounds activations once more, for every "
                "32 inputs, "
                "and logits differ by about 1 %; a file cannot say so.",
            ],
            usage(packed),
            {"license": self.license, "library_name": "onnx", "tags": ["bitexp", "quantization"]},
        )


SESSION = """\
import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
session = onnxruntime.InferenceSession("model.onnx", options)
"""
IMAGES = """\
(logits,) = session.run(None, {{"images": images}})  # {inputs}
"""
TEXT = """\
places = session.get_inputs()[1:]  # keys and values of the tokens so far, [batch, heads, tokens, size]
past = [np.zeros((1, p.shape[1], 0, p.shape[3]), np.float32) for p in places]
text, unread = [], [{first}]  # the prompt
while len(text) + len(unread) < {context}:
    given = dict(zip((p.name for p in places), past))
    logits, *past = session.run(None, {{"input_ids": np.array([unread], np.int64), **given}})
    text += unread
    unread = [int(logits[0, -1].argmax())]
"""


def usage(packed: Packed) -> str:
    """Code that runs the graph."""
    if isinstance(packed.model, Decoder):
        return SESSION + TEXT.format(context=packed.model.context, first=0)
    return SESSION + IMAGES.format(inputs=words_of(packed.model, packed.preprocessing))


@dataclass(frozen=True)
class ExportCall:
    """What torch's exporter is called with."""

    model: nn.Module
    args: tuple[Any, ...]
    dynamic_shapes: tuple[Any, ...]
    input_names: list[str]
    output_names: list[str]


def call_of(model: nn.Module, preprocessing: Mapping[str, Any]) -> ExportCall:
    """The call for a model; a decoder takes and gives keys and values, by the names that Optimum has."""
    example, sizes = example_of(model, preprocessing)
    if not isinstance(model, Decoder):
        return ExportCall(Alone(model).eval(), (example,), (sizes,), ["images"], ["logits"])
    past = torch.export.Dim("past", min=0)
    kinds = [f"{block}.{kind}" for block in range(len(model.blocks)) for kind in ("key", "value")]
    pasts = tuple(torch.zeros(len(example), model.kv_heads, 3, model.head_dim) for _ in kinds)
    return ExportCall(
        WithPast(model).eval(),
        (example, *pasts),
        (sizes, tuple({0: sizes[0], 2: past} for _ in kinds)),
        ["input_ids", *(f"past_key_values.{kind}" for kind in kinds)],
        ["logits", *(f"present.{kind}" for kind in kinds)],
    )


class WithPast(nn.Module):
    """A decoder that takes the keys and values of the tokens so far, and gives them with the new ones."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, *pasts: Tensor) -> tuple[Tensor, ...]:
        past: Any = Past(pasts)
        return self.model(tokens, past), *past.presents


class Past:
    """What `Cache` is to a decoder, as tensors `[B, kv_heads, T, head_dim]`: keys, values of each block."""

    def __init__(self, pasts: Sequence[Tensor]) -> None:
        self.pasts, self.presents = pasts, list[Tensor]()
        self.length = pasts[0].shape[2]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a block."""
        before = self.pasts[2 * layer : 2 * layer + 2]
        k, v = (torch.cat([old, new], 2) for old, new in zip(before, (keys, values), strict=True))
        self.presents += [k, v]
        return k, v


def pack_codes(model: Any, ir: Any) -> int:
    """Stores codes that are cast to floats in the fewest bits that hold them; returns how many tensors.

    `MatMul(x, Transpose(Cast(codes)))` becomes `MatMul(x, DequantizeLinear(codes^T, 1))`, which ONNX Runtime
    multiplies as it is; elsewhere the transposition stays.
    """
    graph, changed = model.graph, 0
    for node in list(graph):
        codes = None if node.op_type != "Cast" or not node.inputs else node.inputs[0]
        if codes is None or codes.const_value is None or codes.const_value.dtype != ir.DataType.INT8:
            continue
        values = codes.const_value.numpy()
        turned = transposed(node)
        target = node.outputs[0]
        if turned is not None:
            values, target = np.ascontiguousarray(values.T), turned.outputs[0]
        kind = fewest(values)
        stored = ir.Value(
            name=f"{codes.name}.codes", const_value=tensor(ir, values, kind, f"{codes.name}.codes")
        )
        scale = ir.Value(
            name=f"{codes.name}.one", const_value=ir.Tensor(np.float32(1), name=f"{codes.name}.one")
        )
        for value in (stored, scale):
            value.shape, value.dtype = value.const_value.shape, value.const_value.dtype
            graph.register_initializer(value)
        floats = ir.Node("", "DequantizeLinear", [stored, scale], num_outputs=1)
        floats.outputs[0].name = f"{codes.name}.floats"
        floats.outputs[0].dtype, floats.outputs[0].shape = ir.DataType.FLOAT, stored.shape
        graph.insert_before(node, floats)
        ir.convenience.replace_all_uses_with(target, floats.outputs[0])
        graph.remove([n for n in (turned, node) if n is not None], safe=True)
        if not codes.uses():
            del graph.initializers[codes.name]
        changed += 1
    return changed


def strip(model: Any) -> None:
    """Removes what torch notes about every node: half of a file, with paths of the machine that wrote it."""
    nodes = list(model.graph)
    values = [value for node in nodes for value in node.outputs]
    for noted in [
        model,
        model.graph,
        *nodes,
        *values,
        *model.graph.inputs,
        *model.graph.initializers.values(),
    ]:
        noted.metadata_props.clear()
        noted.doc_string = None


def transposed(cast: Any) -> Any:
    """The transposition of a matrix for a product that is all that a cast is used for, or None."""
    uses = list(cast.outputs[0].uses())
    if len(uses) != 1 or (node := uses[0].node).op_type != "Transpose" or len(cast.outputs[0].shape) != 2:
        return None
    followers = [use.node.op_type for use in node.outputs[0].uses()]
    return node if followers and set(followers) == {"MatMul"} else None


def fewest(values: np.ndarray) -> str:
    """The smallest integers that hold values."""
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    return next((name for name, (least, most) in SMALL.items() if least <= low and high <= most), "INT8")


def tensor(ir: Any, values: np.ndarray, kind: str, name: str) -> Any:
    """int8 values as a tensor of fewer bits: consecutive ones share a byte, the first in the lowest bits."""
    if kind == "INT8":
        return ir.Tensor(values, name=name)
    bits = 2 if kind == "INT2" else 4
    count = 8 // bits
    flat = np.pad(values.ravel(), (0, -values.size % count)).astype(np.uint8) & (1 << bits) - 1
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    packed = np.bitwise_or.reduce(flat.reshape(-1, count) << shifts, axis=1).astype(np.uint8)
    return ir.PackedTensor(packed, getattr(ir.DataType, kind), shape=ir.Shape(values.shape), name=name)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the notes of torch's exporter."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def library() -> Any:
    """The package `onnx_ir`. Raises `UserError` saying how to get what is needed."""
    try:
        import onnx_ir
        import onnxscript  # noqa: F401  which torch's exporter imports
    except ImportError:
        raise UserError('ONNX needs the packages onnx and onnxscript: pip install "bitexp[onnx]"') from None
    return onnx_ir
