"""Other implementations of a ternary layer: each takes fp32 activations and gives fp32 outputs.

A peer is a function of codes `[outputs, inputs]`, their scale, activations `[tokens, inputs]` and threads,
that returns a call. It raises `ImportError` where its package is not installed and `ValueError` for a shape
that it cannot compute.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bitexp.bench.ggml import ggml
from bitexp.kernels import KERNELS

Make = Callable[[Tensor, float, Tensor, int], Callable[[], Any]]


@dataclass(frozen=True)
class Peer:
    """An implementation, the bits per weight that it reads, and the package that brings it."""

    make: Make
    bits: float
    package: str = "torch"


def kernel(name: str) -> Make:
    """One of our own kernels."""

    def make(codes: Tensor, scale: float, x: Tensor, threads: int) -> Callable[[], Tensor]:
        one = KERNELS.get(name)
        if reason := one.unavailable("cpu"):
            raise ImportError(reason)
        prepared = one.prepare(codes.clone(), torch.tensor(scale))
        return lambda: one.forward(x, prepared)

    return make


def dense(dtype: torch.dtype) -> Make:
    """`F.linear` in a float type, activations cast to it and outputs cast back."""

    def make(codes: Tensor, scale: float, x: Tensor, threads: int) -> Callable[[], Tensor]:
        weight = (codes.float() * scale).to(dtype)
        if dtype == torch.float32:
            return lambda: F.linear(x, weight)
        return lambda: F.linear(x.to(dtype), weight).float()

    return make


def fbgemm(codes: Tensor, scale: float, x: Tensor, threads: int) -> Callable[[], Tensor]:
    """torch's dynamic quantization: int8 weights, 7-bit activations with a scale per tensor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch.ao.quantization as quantization

        torch.backends.quantized.engine = "x86"
        linear = torch.nn.Linear(codes.shape[1], codes.shape[0], bias=False)
        linear.weight.data = codes.float() * scale
        model = torch.nn.Sequential(linear)
        model = quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    return lambda: model(x)


def onnxruntime(codes: Tensor, scale: float, x: Tensor, threads: int) -> Callable[[], Any]:
    """MatMulNBits with 2-bit weights, a scale per 128 of them, and int8 activations inside."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    outputs, inputs = codes.shape
    if inputs % 128:
        raise ValueError("rows must be multiples of 128 long")
    digits = (codes + 2).to(torch.uint8).reshape(outputs, inputs // 128, 32, 4)
    packed = sum(digits[..., i] << (2 * i) for i in range(4))
    scales = np.full(outputs * inputs // 128, scale, np.float32)
    settings: dict[str, Any] = {"K": inputs, "N": outputs, "bits": 2, "block_size": 128, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **settings)
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [len(x), outputs])],
        [numpy_helper.from_array(np.asarray(packed), "w"), numpy_helper.from_array(scales, "s")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {"x": x.numpy()}
    return lambda: session.run(None, given)[0]


def litespark(codes: Tensor, scale: float, x: Tensor, threads: int) -> Callable[[], Any]:
    """litespark-inference's tables of sums; its batched kernel leaves outputs unwritten above 64 tokens."""
    from litespark_inference.torchless.kernel import _load
    from litespark_inference.torchless.pack import pack_ternary_4_per_byte

    tokens, inputs = x.shape
    if tokens > 64:
        raise ValueError("it computes at most 64 tokens")
    if threads > 1:
        raise ValueError("measured with one thread only")
    outputs = len(codes)
    lib, packed, given = _load(), pack_ternary_4_per_byte(codes.numpy()), x.numpy()
    q, scales = np.zeros((tokens, inputs), np.int8), np.zeros(tokens, np.float32)
    y = np.zeros((tokens, outputs), np.float32)

    def one() -> Any:
        input_scale = lib.quantize_activation(given[0], q[0], inputs)
        lib.matmul_lut_m1(q[0], packed, scale, input_scale, y[0], outputs, inputs)
        return y

    def several() -> Any:
        lib.quantize_activation_batched(given, q, scales, tokens, inputs)
        lib.matmul_lut_mT(q, scales, packed, scale, y, tokens, outputs, inputs)
        return y

    return one if tokens == 1 else several


PEERS = {
    "cpu": Peer(kernel("cpu"), 2, "numba"),
    "int8": Peer(kernel("int8"), 8),
    "torch fp32": Peer(dense(torch.float32), 32),
    "torch bf16": Peer(dense(torch.bfloat16), 16),
    "FBGEMM int8": Peer(fbgemm, 8),
    "ggml TQ2_0": Peer(ggml, 2.0625, "xllamacpp"),
    "ONNX Runtime 2-bit": Peer(onnxruntime, 2.25, "onnxruntime and onnx"),
    "litespark": Peer(litespark, 2, "litespark-inference, built with a C++ compiler"),
}
