"""How kernels are started: on which device, with which options, in which twin."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
import triton
from torch import Tensor

EXACT_STEPS: dict[str, Any] = {"enable_fp_fusion": False}
"""No fused multiply-add: a product and a sum are each rounded, as torch does it."""


def on_device_of(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton starts kernels on the current device: make it the one where x lies."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def use_asm(x: Tensor) -> bool:
    """Whether PTX can be inlined: on NVIDIA; not on AMD nor in Triton's interpreter."""
    return x.is_cuda and torch.version.hip is None


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; in the interpreter as many as an H100 has, so that it splits alike."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may use."""
    if device.type != "cuda":
        return 227 * 1024
    properties: Any = torch.cuda.get_device_properties(device)
    usual = properties.shared_memory_per_block  # on AMD there is no more
    return int(getattr(properties, "shared_memory_per_block_optin", usual))


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return int(triton.cdiv(a, b))
