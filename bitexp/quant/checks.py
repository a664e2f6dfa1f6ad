"""What quantized layers, trained and frozen, refuse in words instead of computing something else."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bitexp.quant.spec import LayerSpec

WIDEST = 2**31
"""Where int32 sums end."""


def check_input(x: Tensor) -> None:
    """Raises `TypeError` for an input that is not of real floats, which an ordinary layer refuses as well."""
    if not x.dtype.is_floating_point:
        raise TypeError(
            f"a quantized layer takes floats and not {x.dtype}: convert the input before it, as in x.float()"
        )


PARAMETRIZED = (
    "its {name} is computed and no parameter (weight_norm, spectral_norm, prune, parametrizations). "
    "Take that off first (remove_weight_norm, remove_spectral_norm, prune.remove, remove_parametrizations), "
    "then quantize, then put it on the quantized layer: in this order it is trained, saved and frozen"
)


def unfit_parameters(weight: Tensor, bias: Tensor | None) -> str | None:
    """Why these cannot become latent weights and the bias of a quantized layer, or None."""
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and not isinstance(tensor, nn.Parameter):
            return PARAMETRIZED.format(name=name)
    if is_lazy(weight):
        return "it has no weights yet: run the model once before it is quantized"
    if not weight.dtype.is_floating_point:
        return f"its weights are {weight.dtype} and no real floats"
    return None


def check_exact(spec: LayerSpec) -> None:
    """Raises `ValueError` where a sum over that many codes could leave the integers of 32 bits."""
    if spec.activations is None:
        return
    inputs = torch.Size(spec.shape[1:]).numel()
    largest = inputs * spec.activations.levels.largest * spec.levels.largest
    if largest >= WIDEST:
        raise ValueError(
            f"a layer with {inputs:,} inputs can sum to {largest:,}, more than 32 bits hold; keep this "
            "layer in full precision (quantizer.exclude) or give it fewer bits"
        )


FROZEN = (
    "packed", "scale", "shift", "spec", "packing", "activations", "transform", "sparsifier", "kernel",
    "prepared", "kernel_makes_codes", "kernel_takes_norm", "dtype", "shown_weight", "show_weight", "use",
    "differentiated",
)  # fmt: skip
"""What a frozen layer has for itself, and a layer that is to become one cannot have of others."""


def check_free(module: nn.Module, name: str) -> None:
    """Raises `ValueError` where a layer has an attribute of that name, or will have it when it is frozen."""
    if name in FROZEN or hasattr(module, name):
        raise ValueError(f"its attribute '{name}' is one that a quantized layer has for itself: rename it")
