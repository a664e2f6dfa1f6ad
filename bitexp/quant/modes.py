"""What a tensor is and who follows what is done with it; the one place for torch's private names.

Code below torch, compiled for processors or in Triton, reads the memory of tensors. It may do so where
`readable` says so: the numbers lie in memory, and nothing follows the operations of torch, which would miss
what is done past it. Names are looked up once, since a few of these are asked for every token.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
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

MODULE_CALL = nn.Module._call_impl.__code__
"""What runs while a module is called."""


def followed() -> bool:
    """Whether the operations of torch are followed here, by a compiler, a transform, a mode or a trace.

    Modes are those below autograd: fake tensors, `make_fx`, export, counters of operations.
    """
    return is_dynamo_compiling() or functorch_transforms() or dispatch_modes() > 0 or trace() is not None


def in_memory(x: Tensor) -> bool:
    """Whether a tensor is an ordinary one, of numbers in the memory of its device; a compiler has none."""
    return not is_dynamo_compiling() and (type(x) is Tensor or type(x) is Parameter) and has_storage(x)


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


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on where a tensor lies; on `meta`, of which torch refuses to say it, it is not."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Switches autocast off where it is on; the context costs as much as a small layer's norm."""
    if autocasts(x):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()


def result_dtype(x: Tensor) -> torch.dtype:
    """The dtype an ordinary linear layer would answer with: autocast's where it is on, else x's."""
    if autocasts(x):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def apply_without_binding(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """`function.apply` for eager calls with all arguments given by position.

    `Function.apply` binds the arguments against the signature at every call, for functorch, which takes as
    long as the norm of a small layer: 3 to 5 % of a training step of the recipes' models (2026-11, torch
    2.13).
    """
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]


def own(module: nn.Module, name: str) -> Any:
    """A parameter of a module as the module itself has it: no `__getattr__` in between.

    Where it is computed (parametrizations, pruning) it is an attribute, which is then taken.
    """
    parameters: dict[str, Any] = module._parameters
    return parameters[name] if name in parameters else getattr(module, name)


def in_forward() -> bool:
    """Whether a module is being called, here or in what calls this, as far as a compiler lets us know."""
    if is_dynamo_compiling():
        return True
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not MODULE_CALL:
        frame = frame.f_back
    return frame is not None


def versions(module: nn.Module) -> dict[str, int]:
    """By dotted name, the version of what each module writes into a state dict."""
    return {name: module._version for name, module in module.named_modules()}


def with_versions(state: dict[str, Tensor], numbers: Mapping[str, int]) -> Mapping[str, Tensor]:
    """A state dict that says by which versions of the modules it was written, as `state_dict()` does."""
    versioned = OrderedDict(state)
    versioned._metadata = {name: {"version": number} for name, number in numbers.items()}  # type: ignore[attr-defined]
    return versioned


def with_child(module: M, name: str, child: nn.Module) -> M:
    """A shallow copy of a module with another child under a name; all the rest is shared with it."""
    twin = copy.copy(module)
    twin._modules = {**module._modules, name: child}
    return twin
