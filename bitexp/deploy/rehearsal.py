"""The end of a run is tried before its first step: a frozen copy computes what the model does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from bitexp.deploy.frozen import FrozenLayer, freeze
from bitexp.quant.backend import TORCH
from bitexp.quant.layers import QuantizedLayer, set_backend, set_lambda, set_progress
from bitexp.quant.outside import WeightsRead

Outputs = list[tuple[str, Tensor]]
"""What layers answered, in the order in which they were called."""


@torch.no_grad()
def rehearse(model: nn.Module, forward: Callable[[nn.Module], object], layout: str = "auto") -> None:
    """Freezes a copy of a model and checks that it computes the same, to the bit, by the kernel `reference`.

    Args:
        forward: calls the model it is given.
        layout: as in `freeze`.

    Raises:
        ValueError: naming the first layer with another output, or what the network asks of a frozen layer
            that it does not have.
    """
    model = copy.deepcopy(model).cpu().eval()
    set_backend(model, TORCH)
    set_lambda(model, 1.0)
    set_progress(model, 1.0)
    expected = outputs(model, forward)
    freeze(model, layout)
    try:
        found = outputs(model, forward)
    except (AttributeError, TypeError, WeightsRead) as error:
        raise ValueError(
            f"the network cannot be frozen: {error}; keep the layers whose insides it uses in full precision "
            "(model.full_precision, or quantizer.exclude)"
        ) from error
    for (name, y), (other, z) in zip_longest(expected, found, fillvalue=("", torch.empty(0))):
        if name != other:
            raise ValueError(
                f"{name or other}: the network goes another way where its layers are frozen; keep the layers "
                "on which that depends in full precision (model.full_precision, or quantizer.exclude)"
            )
        if not torch.equal(y.nan_to_num(), z.nan_to_num()):
            raise ValueError(
                f"{name}: frozen, the layer computes something else than in training; keep it in full "
                "precision (model.full_precision, or quantizer.exclude), or choose another quantizer for it"
            )


def outputs(model: nn.Module, forward: Callable[[nn.Module], object]) -> Outputs:
    """The outputs of the quantized or frozen layers in one forward of the model."""
    names, found = {module: name for name, module in model.named_modules()}, Outputs()

    def notice(module: nn.Module, _: Any, output: Tensor) -> None:
        if isinstance(module, QuantizedLayer | FrozenLayer):
            found.append((names[module], output))

    handle = register_module_forward_hook(notice)
    try:
        forward(model)
    finally:
        handle.remove()
    return found
