"""What a tensor is and who follows what is done with it; the one place for torch's private names.

Code below torch, compiled for processors or in Triton, reads the memory of tensors. It may do so where
`readable` says so: the numbers lie in memory, and nothing follows the operations of torch, which would miss
what is done past it. Names are looked up once, since a few of these are asked for every token.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import torch
from torch import Tensor, is_grad_enabled, nn
from torch._C import _are_functorch_transforms_active as functorch_transforms
from torch._C import _functorch as functorch
from torch._C import _get_tracing_state as trace
from torch._C import _has_storage as has_storage
from torch._C import _len_torch_dispatch_stack as dispatch_modes
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter

M = TypeVar("M", bound=nn.Module)

int_mm = torch._int_mm
"""int8 matrices `[n, k] @ [k, m]`, their sums in int32; torch has no public name for it."""

has_vnni = torch.cpu._is_vnni_supported
"""Whether the processor has the instructions that make `int_mm` fast."""

batched = functorch.is_batchedtensor
"""Whether vmap has taken a dimension of a tensor away, so that it is no matrix to those below torch."""


def followed() -> bool:
    """Whether the operations of torch are followed here, by a compiler, a transform, a mode or a trace.

    Modes are those below autograd: fake tensors, `make_fx`, export, counters of operations.
    """
    return is_dynamo_compiling() or functorch_transforms() or dispatch_modes() > 0 or trace() is not None


def in_memory(x: Tensor) -> bool:
    """Whether a tensor is an ordinary one, of numbers in the memory of its device."""
    return (type(x) is Tensor or type(x) is Parameter) and has_storage(x)


def recorded(x: Tensor) -> bool:
    """Whether autograd records what is done with a tensor."""
    return x.requires_grad and is_grad_enabled()


def readable(x: Tensor) -> bool:
    """Whether the memory of a dense tensor may be read past torch: nothing above, nor autograd, misses it.

    It is asked for every token, so it makes no call that it can do without.
    """
    return (
        (type(x) is Tensor or type(x) is Parameter)
        and not (x.requires_grad and is_grad_enabled())
        and not is_dynamo_compiling()
        and not functorch_transforms()
        and not dispatch_modes()
        and trace() is None
    )


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


def carry_over(layer: nn.Module, twin: nn.Module, shape: Collection[str]) -> None:
    """Gives a twin what was attached to the layer whose place it takes.

    That is: hooks, the training flag, attributes, and further parameters, buffers and modules. Hooks stay in
    their own dictionaries, so that their handles still remove them. `shape` names attributes that both have.

    Raises:
        ValueError: the twin has an attribute of that name for itself.
    """
    apart = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_compiled_call_impl")
    every = vars(nn.Module())
    for name, value in vars(layer).items():
        if name in apart:
            continue
        if name not in every:
            if name in shape:
                continue
            check_free(twin, name)
        vars(twin)[name] = value
    for name, parameter in layer.named_parameters(recurse=False):
        if name not in ("weight", "bias"):
            check_free(twin, name)
            twin.register_parameter(name, parameter)
    for name, buffer in layer.named_buffers(recurse=False):
        check_free(twin, name)
        fleeting = name in vars(layer)["_non_persistent_buffers_set"]
        twin.register_buffer(name, buffer, persistent=not fleeting)
    for name, child in layer.named_children():
        check_free(twin, name)
        twin.add_module(name, child)


def check_free(module: nn.Module, name: str) -> None:
    """Raises `ValueError` where a module has an attribute of that name."""
    if hasattr(module, name):
        raise ValueError(f"its attribute '{name}' is one that a quantized layer has for itself: rename it")


def with_child(module: M, name: str, child: nn.Module) -> M:
    """A shallow copy of a module with another child under a name; all the rest is shared with it."""
    twin = copy.copy(module)
    twin._modules = {**module._modules, name: child}
    return twin
