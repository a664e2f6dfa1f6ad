"""ggml's matrix product with TQ2_0 weights, out of the library that the wheel `xllamacpp` carries."""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

F32, TQ2_0 = 0, 35  # enum ggml_type


class Init(ctypes.Structure):
    """`struct ggml_init_params`."""

    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Plan(ctypes.Structure):
    """`struct ggml_cplan`: what the library fills in behind the first fields is left alone."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("threads", ctypes.c_int),
        ("pool", ctypes.c_void_p),
        ("rest", ctypes.c_char * 64),
    )


class PoolSettings(ctypes.Structure):
    """`struct ggml_threadpool_params`, opaque."""

    _fields_ = (("content", ctypes.c_char * 1024),)


@functools.cache
def library() -> Any:
    """The shared library with the functions that are used here."""
    spec = find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise ImportError("xllamacpp is not installed")
    (path,) = Path(spec.origin).parent.glob("xllamacpp*.so")
    lib = ctypes.CDLL(str(path))
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    signatures = {
        "ggml_cpu_init": (None, []),
        "ggml_init": (pointer, [Init]),
        "ggml_free": (None, [pointer]),
        "ggml_new_tensor_2d": (pointer, [pointer, ctypes.c_int, number, number]),
        "ggml_get_data": (pointer, [pointer]),
        "ggml_quantize_chunk": (
            ctypes.c_size_t,
            [ctypes.c_int, pointer, pointer, number, number, number, pointer],
        ),
        "ggml_mul_mat": (pointer, [pointer, pointer, pointer]),
        "ggml_new_graph": (pointer, [pointer]),
        "ggml_build_forward_expand": (None, [pointer, pointer]),
        "ggml_threadpool_params_default": (PoolSettings, [ctypes.c_int]),
        "ggml_threadpool_new": (pointer, [pointer]),
        "ggml_graph_plan": (Plan, [pointer, ctypes.c_int, pointer]),
        "ggml_graph_compute": (ctypes.c_int, [pointer, pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.ggml_cpu_init()
    return lib


@functools.cache
def pool(threads: int) -> int:
    """Threads that stay between products."""
    settings = library().ggml_threadpool_params_default(threads)
    return int(library().ggml_threadpool_new(ctypes.byref(settings)))


class Product:
    """A graph of one product: `[tokens, inputs]` floats with ternary weights `[outputs, inputs]`."""

    def __init__(self, codes: Tensor, scale: float, x: Tensor, threads: int) -> None:
        lib = library()
        outputs, inputs = codes.shape
        weights = codes.float() * scale
        size = codes.numel() // 2 + 4 * (x.numel() + len(x) * outputs) + (4 << 20)
        self.context = lib.ggml_init(Init(size, None, False))
        weakref.finalize(self, lib.ggml_free, self.context)
        w = lib.ggml_new_tensor_2d(self.context, TQ2_0, inputs, outputs)
        data = lib.ggml_get_data(w)
        lib.ggml_quantize_chunk(TQ2_0, weights.data_ptr(), data, 0, outputs, inputs, None)
        given = lib.ggml_new_tensor_2d(self.context, F32, inputs, len(x))
        ctypes.memmove(lib.ggml_get_data(given), x.data_ptr(), 4 * x.numel())
        result = lib.ggml_mul_mat(self.context, w, given)
        self.graph = lib.ggml_new_graph(self.context)
        lib.ggml_build_forward_expand(self.graph, result)
        self.plan = lib.ggml_graph_plan(self.graph, threads, pool(threads))
        self.work = torch.empty(max(1, self.plan.size), dtype=torch.uint8)
        self.plan.data = self.work.data_ptr()
        floats = (ctypes.c_float * (len(x) * outputs)).from_address(lib.ggml_get_data(result))
        self.output = torch.frombuffer(floats, dtype=torch.float32).view(len(x), outputs)

    def __call__(self) -> Tensor:
        library().ggml_graph_compute(self.graph, ctypes.byref(self.plan))
        return self.output


def ggml(codes: Tensor, scale: float, x: Tensor, threads: int) -> Callable[[], Tensor]:
    """TQ2_0: 2.06 bits per weight, activations in int8 with a scale per 256."""
    if codes.shape[1] % 256:
        raise ValueError("rows of TQ2_0 must be multiples of 256 long")
    return Product(codes, scale, x, threads)
