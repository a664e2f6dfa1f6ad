"""Deltas of one bit: a fine-tuned network as signs on its base (BitDelta, arXiv 2402.10193).

For each matrix of the body there are the signs of what fine-tuning changed and one scale. It begins with the
mean magnitude of the change, the best one for these signs, and is then trained. All else is stored as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitexp.common.errors import UserError
from bitexp.deploy.forms.file import UNFIT, matrices, packed_signs, read_form, save_form, signs
from bitexp.deploy.packed_file import PackedFile, checksum_of, unpack
from bitexp.kernels.reference import Reference

PARTS = {"header": dict, "base": int}


def one_bit(base: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
    """The packed signs of fine - base `[out, ...]`, 0 as +1, and their scale `[]` (equations 1 to 3)."""
    change = (fine - base).flatten(1)
    return packed_signs(change), change.abs().mean()


def delta_of(base: PackedFile, fine: PackedFile) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of the delta from a base to a network that was fine-tuned from it.

    Raises:
        UserError: they are not the same network.
    """
    header, tensors = fine
    names = matrices(header, tensors)
    shapes = {name: tuple(tensors[name].shape) for name in names}
    if shapes != {name: tuple(base[1][name].shape) for name in names if name in base[1]}:
        raise UserError("a delta is between two runs of one network, and the layers of these differ")
    kept = {name: tensor for name, tensor in tensors.items() if name not in shapes}
    for name in names:
        kept[f"{name}.signs"], kept[f"{name}.scale"] = one_bit(base[1][name], tensors[name])
    return {"header": header, "base": checksum_of(*base)}, kept


def applied(
    base: PackedFile, delta: tuple[dict[str, Any], dict[str, Tensor]], path: Path | str = "the delta"
) -> PackedFile:
    """The network that a delta makes of its base, as a packed file of floats.

    Raises:
        UserError: it is of another base, or describes no delta.
    """
    header, tensors = delta
    if header["base"] != checksum_of(*base):
        raise UserError(f"{path} was made for another base: the weights of this one are others")
    try:
        found = dict(tensors)
        for name in matrices(header["header"], base[1]):
            codes, scale = found.pop(f"{name}.signs"), found.pop(f"{name}.scale")
            weight = base[1][name]
            if scale.dim():
                raise ValueError(f"{name} has the scale {list(scale.shape)}, which should be one number")
            found[name] = weight + (signs(codes, weight[0].numel()) * scale).reshape(weight.shape)
    except UNFIT as error:
        raise UserError(f"{path} does not describe a delta that can be built here: {error}") from error
    return header["header"], found


def train_scales(
    base: PackedFile,
    delta: tuple[dict[str, Any], dict[str, Tensor]],
    outputs: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor],
    lr: float = 1e-4,
    tell: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Trains the scales of a delta, in place, so that its outputs are those of the fine-tuned network.

    The loss is the mean squared difference of outputs (section 3.2), by Adam.

    Args:
        outputs: of the fine-tuned network. batches: of inputs, one for each step.
        tell: gets each step with its loss before it.
    """
    header, tensors = delta
    model, _ = unpack(Path("delta"), applied(base, delta), Reference())
    names = matrices(header["header"], base[1])
    scales = {name: tensors[f"{name}.scale"].clone().requires_grad_() for name in names}
    codes = {name: signs(tensors[f"{name}.signs"], base[1][name][0].numel()) for name in names}
    optimizer = torch.optim.Adam(scales.values(), lr=lr)
    for step, inputs in enumerate(batches):
        weights = {
            name: base[1][name] + (codes[name] * scale).reshape(base[1][name].shape)
            for name, scale in scales.items()
        }
        with torch.no_grad():
            expected = outputs(inputs).float()
        found = torch.func.functional_call(model, weights, (inputs,))
        loss = (found.float() - expected).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tell(step, float(loss.detach()))
    for name, scale in scales.items():
        tensors[f"{name}.scale"] = scale.detach()


def save_delta(path: Path, delta: tuple[dict[str, Any], dict[str, Tensor]]) -> None:
    """Writes a delta."""
    save_form(path, "delta", *delta)


def read_delta(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads a delta. Raises `UserError` where there is none, or it is damaged."""
    return read_form(path, "delta", PARTS)
