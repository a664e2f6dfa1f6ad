"""What a trained norm has learned goes into the linear layers that it feeds, where its place is taken.

A norm that becomes a quantized layer's own has no parameters: `W (gain * n + shift) + b` is
`(W gain) n + (W shift + b)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn

from bitexp.quant.modes import in_memory


def check_foldable(name: str, norm: nn.Module, linears: Sequence[nn.Linear], model: nn.Module) -> None:
    """Raises `ValueError` where what a norm has learned has no place in the layers that it feeds."""
    gain, shift = learned(norm)
    if gain is None and shift is None:
        return
    owned = [id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)]
    if any(owned.count(id(linear.weight)) > 1 for linear in linears):
        raise ValueError(
            f"the norm {name} has a learned gain, and layers whose weights are tied to others have no "
            "place for it"
        )
    if shift is not None and any(linear.bias is None for linear in linears):
        raise ValueError(
            f"the norm {name} has a learned shift, and layers without a bias have no place for it"
        )


@torch.no_grad()
def fold(norm: nn.Module, linears: Sequence[nn.Linear]) -> bool:
    """Gives the layers, in place, what the norm before them has learned; whether that is anything."""
    gain, shift = learned(norm)
    for linear in linears:
        if shift is not None:
            linear.bias.add_(linear.weight.float() @ shift)
        if gain is not None:
            linear.weight.mul_(gain)
    return gain is not None or shift is not None


def learned(norm: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """Gain and shift of a norm, None for what is as it was at first: one and zero."""
    gain, shift = getattr(norm, "weight", None), getattr(norm, "bias", None)
    gain = gain.detach() if known(gain) and not bool((gain == 1).all()) else None
    return gain, shift.detach() if known(shift) and bool(shift.any()) else None


def known(tensor: Tensor | None) -> TypeGuard[Tensor]:
    """Whether there are numbers to look at, as in a network without memory there are not."""
    return isinstance(tensor, Tensor) and in_memory(tensor) and not tensor.is_meta
