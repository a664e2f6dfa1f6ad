"""What a packed file may say: checked before anything is allocated for it, and again in the loaded model."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bitexp.deploy.frozen import FrozenLayer, Packing
from bitexp.quant.layers import QuantizedLayer
from bitexp.quant.spec import Geometry

TENSORS_AT_LEAST, TENSORS_FOR_EACH = 1000, 16
"""How many tensors a constructor may make: so many, and so many more for each one in the file."""


PIECE = 2**20
"""Numbers that are looked at together."""
HALVES = (torch.bfloat16, torch.float16)
"""What floats may be stored as that are fp32 in the model."""
NUMBERS, NUMBERS_AT_MOST = (torch.arange, torch.linspace, torch.tensor), 4096
"""What makes tensors to calculate with, as the widths of layers, and how long such a one may be."""


class Limited(TorchFunctionMode):
    """While it is active, making more than `count` tensors raises `ValueError`.

    With `numbers`, short tensors of `NUMBERS` are made on the CPU, whatever the default device is: on `meta`
    a constructor cannot read them.
    """

    def __init__(self, count: int, numbers: bool = False) -> None:
        super().__init__()
        self.left, self.numbers = count, numbers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.numbers and func in NUMBERS and result.is_meta and result.numel() <= NUMBERS_AT_MOST:
            result = func(*args, **{**(kwargs or {}), "device": "cpu"})
        if isinstance(result, Tensor) and not (args and result is args[0]):
            self.left -= 1
            if self.left < 0:
                raise ValueError("the model that it describes has far more tensors than the file")
        return result


def strict_json(text: str) -> Any:
    """The value of a JSON text that names nothing twice and holds finite numbers only.

    Raises:
        ValueError: it is none.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ():
            raise ValueError(f"its header has {', '.join(sorted(twice))} twice")
        return dict(pairs)

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise ValueError(f"its header has the number {number}")
        return value

    return json.loads(text, object_pairs_hook=unique, parse_float=finite, parse_constant=finite)


def check_shapes(
    model: nn.Module,
    layers: Mapping[str, tuple[QuantizedLayer, Packing]],
    owners: Mapping[str, str],
    tensors: Mapping[str, Tensor],
) -> None:
    """Compares a model on the meta device with a file, so that no wrong size is ever allocated.

    Args:
        model: not frozen yet. layers: of the model, with how their codes lie in the file. owners: for each
            name in its state the one under which the file has it.

    Raises:
        ValueError: the file has not the tensors of this model.
    """
    for name, tensor in model.state_dict().items():
        if not within(owners[name], layers):
            check_shape(owners[name], tuple(tensor.shape), tensors)
    for name, (layer, packing) in layers.items():
        shape = layer.spec.shape
        packed = packing.layout.packed_shape(shape[0], math.prod(shape[1:]))
        check_shape(f"{name}.packed", packed, tensors)


def within(name: str, modules: Container[str]) -> bool:
    """Whether a tensor of the state belongs to one of some modules, by their names."""
    while name := name.rpartition(".")[0]:
        if name in modules:
            return True
    return False


def check_shape(name: str, shape: tuple[int, ...], tensors: Mapping[str, Tensor]) -> None:
    """Raises `ValueError` where a file has no tensor of that name and shape."""
    if name not in tensors:
        raise ValueError(f"it has no tensor {name}")
    if (there := tuple(tensors[name].shape)) != shape:
        raise ValueError(f"size mismatch for {name}: {list(there)} in the file, {list(shape)} in the model")


def check_types(
    state: Mapping[str, Tensor],
    owners: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    layers: Container[str],
) -> None:
    """Raises `ValueError` for tensors of a file that the state has not, lacks, or has in another dtype.

    Floats outside of the frozen layers may be stored in half as many bits.
    """
    if unknown := set(tensors) - set(owners.values()):
        raise ValueError(f"the model has no place for {', '.join(sorted(unknown))}")
    for name, owner in owners.items():
        check_shape(owner, tuple(state[name].shape), tensors)
        found, made = tensors[owner].dtype, state[name].dtype
        shorter = found in HALVES and made == torch.float32 and not within(owner, layers)
        if found != made and not shorter:
            raise ValueError(f"{owner} is {tensors[owner].dtype} and should be {state[name].dtype}")


def check_integers(
    state: Mapping[str, Tensor], owners: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> None:
    """Raises `ValueError` for integers of a file that cannot be where the state, which is new, has its own.

    Where these differ from each other they are a table, as of positions, whose range holds; others count.
    """
    for name, made in state.items():
        if made.is_floating_point() or made.is_complex() or made.dtype == torch.bool or not made.numel():
            continue
        if made.is_meta:  # codes, which check themselves
            continue
        values, low, high = tensors[owners[name]], int(made.min()), int(made.max())
        counts = low == high
        if int(values.min()) < (min(low, 0) if counts else low) or not (counts or int(values.max()) <= high):
            span = "below 0" if counts else f"outside of {low} .. {high}"
            raise ValueError(f"{owners[name]} holds integers {span}, which it cannot hold")


def check_values(model: nn.Module) -> None:
    """Raises `ValueError` for values that no training leaves in a frozen model. Codes check themselves."""
    for name, tensor in model.state_dict().items():
        if not all_finite(tensor):
            raise ValueError(f"{name} holds values that are no finite numbers")
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise ValueError(f"{name} holds a variance below 0")
    for name, layer in model.named_modules():
        if isinstance(layer, FrozenLayer):
            largest = layer.scale * layer.spec.levels.largest
            if not bool(((layer.scale > 0) & largest.isfinite()).all()):
                raise ValueError(
                    f"{name}.scale holds values that are no scales: they must be above 0 and finite"
                )
            check_activations(name, layer)


def all_finite(tensor: Tensor) -> bool:
    """Whether floats are finite numbers, looked at in pieces; other types are."""
    pieces = tensor.flatten().split(PIECE) if tensor.is_floating_point() else ()
    return all(bool(piece.isfinite().all()) for piece in pieces)


def check_activations(name: str, layer: FrozenLayer) -> None:
    """Raises `ValueError` where what the activations of a layer have learned gives them no scale."""
    part, at = layer.activations, Geometry(layer.spec.conv)
    if part is None or not part.state_dict():
        return
    features = at.features(layer.spec.shape)
    x = torch.ones(1, features) if layer.spec.conv is None else torch.ones(1, features, 1, 1)
    scale = part.codes(x, at.scale_dims)[1]
    if not bool(((scale > 0) & (scale * part.spec.levels.largest).isfinite()).all()):
        raise ValueError(
            f"{name}.activations holds values of which no scale comes that is above 0 and finite"
        )


def check_body(model: nn.Module, body: list[Any], layers: Iterable[str]) -> None:
    """Raises `ValueError` unless the body names layers of the model once each, the frozen ones among them."""
    modules = [name for name, _ in model.named_modules(remove_duplicate=False)]
    known = all(isinstance(name, str) and name in modules for name in body)
    if not known or len(set(body)) < len(body) or not set(layers) <= set(body):
        raise ValueError(f"its body is {body}, which are not the quantized layers of the model")
