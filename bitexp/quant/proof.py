"""The proof of a conversion: one forward that calls every quantized layer, and reads no weights past one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from bitexp.quant.layers import QuantizedLayer
from bitexp.quant.outside import noticed

PASSED = (
    "{layers}: the model reads these weights without calling the layer, so they would train in full "
    "precision and could not be frozen; add them to model.full_precision (or to quantizer.exclude)"
)
HIDDEN = (
    "the model calls {layers}, which stand in no module that torch knows: they are in a plain list, dict or "
    "closure, where they are neither quantized nor trained; keep them in an nn.ModuleList or nn.ModuleDict"
)


def prove(model: nn.Module, example: Any) -> None:
    """Checks by one forward in evaluation that all quantized layers are called, and only called.

    Attention that multiplies by `.weight` itself (nn.MultiheadAttention, Swin) would train in full precision
    while it looks quantized, and it fails when layers are frozen, since these have no such weights. Both show
    here, as far as a forward of the example goes.

    Args:
        example: what the model is called with: a tuple for several arguments, a mapping for those by name.

    Raises:
        ValueError: naming the layers that were passed by, or which torch does not know of.
    """
    layers = {module: name for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}
    for layer, name in layers.items():
        layer.name = name  # as they are called in this model
    known = set(model.modules())
    training = [module for module in known if module.training]
    called, hidden = set[nn.Module](), dict[nn.Module, None]()

    def notice(module: nn.Module, *_: Any) -> None:
        called.add(module)
        if isinstance(module, nn.Linear | nn.Conv2d | QuantizedLayer) and module not in known:
            hidden[module] = None

    # not hooks of the layers, for which some modules leave a fast path that they take without
    handle = register_module_forward_hook(notice)
    model.eval()
    try:
        with torch.no_grad(), noticed() as read:
            if isinstance(example, Mapping):
                model(**example)
            else:
                model(*(example if isinstance(example, tuple) else (example,)))
    finally:
        handle.remove()
        for module in training:
            module.training = True
    if passed := [name for layer, name in layers.items() if layer not in called or name in read]:
        raise ValueError(PASSED.format(layers=", ".join(passed)))
    if hidden:
        raise ValueError(HIDDEN.format(layers=", ".join(map(str, hidden))))
