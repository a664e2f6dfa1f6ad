"""Embeddings and other linear layers in full precision as int8 codes: half of a small model's file.

A row of weights is codes -127 .. 127 times a scale, its largest magnitude over 127. In a file the tensor
`NAME` is int8, and `NAME.scale` has the scales `[rows]`; in a loaded model the weights are floats again, the
same ones that were tested.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

LARGEST = 127
SCALE = ".scale"


def embeddings_of(model: nn.Module, body: Collection[str]) -> list[str]:
    """The names of weights in full precision, of embeddings and linear layers outside of the body."""
    return [
        f"{name}.weight"
        for name, module in model.named_modules()
        if type(module) in (nn.Embedding, nn.Linear) and name not in body
    ]


def int8_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes and scales `[rows]` of floats `[rows, features]`. Rows of zeros have the scale 1."""
    largest = weight.abs().amax(1)
    scale = torch.where(largest > 0, largest / LARGEST, torch.ones_like(largest))
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
    codes = (weight / scale[:, None]).round().clamp(-LARGEST, LARGEST)
    return codes.to(torch.int8), scale


def floats(codes: Tensor, scale: Tensor) -> Tensor:
    """The weights again."""
    return codes.float() * scale[:, None]


def held_codes(weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """The codes and scales that fp32 weights were made of; None where they are no such weights.

    The largest magnitude of a row is 127 scales, rounded, so the scale is its 127th part or a neighbour.
    """
    largest = torch.where((top := weight.abs().amax(1)) > 0, top / LARGEST, torch.ones_like(top))
    scale, missing = largest.clone(), torch.ones(len(weight), dtype=torch.bool)
    away = torch.full_like(largest, torch.inf)
    for guess in (largest, torch.nextafter(largest, -away), torch.nextafter(largest, away)):
        codes = (weight / guess[:, None]).round()
        fits = missing & (codes * guess[:, None] == weight).all(1)
        scale, missing = torch.where(fits, guess, scale), missing & ~fits
    if bool(missing.any()):
        return None
    return (weight / scale[:, None]).round().to(torch.int8), scale


@torch.no_grad()
def round_embeddings(model: nn.Module, body: Collection[str]) -> None:
    """Makes the weights what an int8 file can hold, in place; tied ones once."""
    named = dict(model.named_parameters())
    for name in embeddings_of(model, body):
        if name in named:
            weight = named[name]
            weight.copy_(floats(*int8_codes(weight.float())))


def encoded(tensors: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """The tensors of a file with these as codes and scales.

    Raises:
        ValueError: a tensor is not what `round_embeddings` leaves.
    """
    found = dict(tensors)
    for name in names:
        if name in found:
            held = held_codes(found[name])
            if held is None:
                raise ValueError(f"{name} is no int8 codes times a scale per row: use round_embeddings first")
            found[name], found[name + SCALE] = held
    return found


def decoded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file with floats in place of codes and scales.

    Raises:
        ValueError: codes have no scales that fit.
    """
    found = dict(tensors)
    for name, codes in tensors.items():
        if codes.dtype == torch.int8:
            scale = found.pop(name + SCALE, None)
            if scale is None or codes.dim() != 2 or scale.shape != codes.shape[:1]:
                raise ValueError(f"{name} has no scale for each of its rows")
            if scale.dtype != torch.float32 or not bool(((scale > 0) & scale.isfinite()).all()):
                raise ValueError(
                    f"{name}{SCALE} holds values that are no scales: they must be above 0 and finite"
                )
            if bool((codes < -LARGEST).any()):
                raise ValueError(f"{name} holds codes below -{LARGEST}")
            found[name] = floats(codes, scale)
    return found
