"""Where a layer runs: under transforms, autocast or compilation; the one place for torch's private names."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def transformed() -> bool:
    """Whether this is traced or transformed: what is seen here may be no numbers."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def plain(x: Tensor) -> bool:
    """Whether a tensor is one of numbers in memory, which code outside of torch can read."""
    return type(x) in (Tensor, torch.nn.Parameter) and torch._C._has_storage(x) and not transformed()


def batched(x: Tensor) -> bool:
    """Whether vmap has taken a dimension of x away, so that it is no matrix to those below torch."""
    return torch._C._functorch.is_batchedtensor(x)


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Switches autocast off where it is on; the context costs as much as a small layer's norm."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()


def result_dtype(x: Tensor) -> torch.dtype:
    """The dtype an ordinary linear layer would answer with: autocast's where it is on, else x's."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def apply_without_binding(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """`function.apply` for eager calls with all arguments given by position.

    `Function.apply` binds the arguments against the signature at every call, for functorch, which takes as
    long as the norm of a small layer: 3 to 5 % of a training step of the recipes' models (2026-11, torch
    2.13).
    """
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]
