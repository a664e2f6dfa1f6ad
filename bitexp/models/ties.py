"""Layers that multiply the same input, and so want one precision: a model's class says which they are.

    ties: ClassVar[Ties] = (("q", "k", "v"),)

Their input is quantized once, and their products can be made as one.
"""

from __future__ import annotations

from torch import nn

Ties = tuple[tuple[str, ...], ...]
"""Groups of layers by their dotted names below the module that says so."""


def tied_layers(model: nn.Module) -> list[tuple[str, ...]]:
    """All groups that the modules of a model declare, by names in the model; absent layers are left out."""
    names = dict(model.named_modules())
    groups = []
    for place, module in names.items():
        declared: Ties = getattr(module, "ties", ())
        for group in declared:
            members = tuple(name for layer in group if (name := f"{place}.{layer}".lstrip(".")) in names)
            if len(members) > 1:
                groups.append(members)
    return groups
