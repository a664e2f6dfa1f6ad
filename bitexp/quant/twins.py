"""A layer becomes another in its place: what was attached stays, and all who refer to it see the new one."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from bitexp.quant.checks import check_free

STORES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_compiled_call_impl")
"""What every module has of its own."""


def carry_over(layer: nn.Module, twin: nn.Module, apart: Collection[str]) -> None:
    """Gives a twin what was attached to the layer that becomes it.

    That is: hooks, the training flag, attributes, and further parameters, buffers and modules. Hooks stay in
    their own dictionaries, so that their handles still remove them.

    Args:
        apart: names of what makes the layer what it is: the twin has its own.

    Raises:
        ValueError: the twin has an attribute of that name for itself.
    """
    every = vars(nn.Module())
    for name, value in vars(layer).items():
        if name in STORES or name in apart:
            continue
        if name not in every:
            check_free(twin, name)
        vars(twin)[name] = value
    for name, parameter in layer.named_parameters(recurse=False):
        if name not in apart:
            check_free(twin, name)
            twin.register_parameter(name, parameter)
    for name, buffer in layer.named_buffers(recurse=False):
        if name not in apart:
            check_free(twin, name)
            fleeting = name in vars(layer)["_non_persistent_buffers_set"]
            twin.register_buffer(name, buffer, persistent=not fleeting)
    for name, child in layer.named_children():
        if name not in apart:
            check_free(twin, name)
            twin.add_module(name, child)


def become(layer: nn.Module, twin: nn.Module) -> None:
    """Makes of a layer what its twin is, wherever the layer stands: as a child, in a list, in a closure."""
    vars(layer).clear()
    vars(layer).update(vars(twin))
    layer.__class__ = type(twin)
