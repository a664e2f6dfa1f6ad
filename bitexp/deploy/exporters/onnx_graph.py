"""An ONNX graph of any model: torch's own exporter, then codes in as many bits as they need.

Norms, activation codes, sums of codes and scales are written out as standard operators in the order that
bitexp has them, so that the integers are the same.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

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
    """model.onnx.

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
        example, shapes = example_of(packed.model, packed.preprocessing)
        with torch.no_grad(), quietly():
            program: Any = torch.onnx.export(
                Alone(packed.model).eval(),
                (example,),
                dynamo=True,
                dynamic_shapes=(shapes,),
                input_names=["tokens" if isinstance(packed.model, Decoder) else "images"],
                output_names=["logits"],
                verbose=False,
            )
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
            USAGE.format(inputs=words_of(packed.model, packed.preprocessing)),
            metadata={"license": self.license, "library_name": "onnx", "tags": ["bitexp", "quantization"]},
        )


USAGE = """\
import onnxruntime

options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
session = onnxruntime.InferenceSession("model.onnx", options)
(outputs,) = session.run(None, {{session.get_inputs()[0].name: inputs}})  # {inputs}
"""


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
