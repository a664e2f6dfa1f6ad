"""The packed file: a frozen model in one safetensors file that holds all that is needed to rebuild it.

The header is JSON: which model, quantizer and layers, and how inputs are prepared. Names in it are looked
up in the registries and nothing in it is executed, so a file from a stranger is safe to load.
"""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from bitexp.common.errors import UserError, is_of_the_machine
from bitexp.common.files import open_regular
from bitexp.deploy.blank import fill, without_weights
from bitexp.deploy.description import Description
from bitexp.deploy.embeddings import decoded, embeddings_of, encoded
from bitexp.deploy.frozen import FrozenLayer, Packing, become_frozen, blank_twin
from bitexp.deploy.packed_checks import (
    TENSORS_AT_LEAST,
    TENSORS_FOR_EACH,
    Limited,
    check_body,
    check_integers,
    check_shapes,
    check_types,
    check_values,
    strict_json,
)
from bitexp.deploy.packing import FORMAT_1, LAYOUTS
from bitexp.deploy.tensor_writer import Made, write_tensors
from bitexp.kernels import Kernel, as_kernel
from bitexp.quant.layers import quantized_layers
from bitexp.quant.modes import versions, with_versions
from bitexp.quant.spec import LayerSpec

FORMAT = 2
"""What is written; 1 is read as well."""
PackedFile = tuple[dict[str, Any], dict[str, Tensor]]
"""Header and tensors."""
PARTS = {"format": int, "body": list, "layers": dict, "description": dict, "crc32": int}


def save_packed(
    path: Path | str,
    model: nn.Module,
    description: Description,
    body: list[str] | None = None,
    embeddings: str = "float",
) -> None:
    """Writes a frozen model, floats in fp32.

    Args:
        body: the layers that count as quantized, though their weights may be floats; None: the frozen ones.
        embeddings: `int8` stores embeddings and linear layers outside of the body as codes, for weights that
            `bitexp.deploy.embeddings.round_embeddings` has left.
    """
    layers = [name for name, layer in model.named_modules() if isinstance(layer, FrozenLayer)]
    state, owners = model.state_dict(), owner_names(model)
    tensors: Mapping[str, Tensor] = Made(
        {name: functools.partial(portable, state[name]) for name in set(owners.values())}
    )
    if embeddings == "int8":
        tensors = encoded(tensors, embeddings_of(model, layers if body is None else body))
    write_packed(Path(path), header_of(model, description, body), tensors)


def header_of(model: nn.Module, description: Description, body: list[str] | None) -> dict[str, Any]:
    """The header of a frozen model's file, without its checksum."""
    layers = {
        name: layer_json(layer.spec, layer.packing)
        for name, layer in model.named_modules()
        if isinstance(layer, FrozenLayer)
    }
    return {
        "format": FORMAT,
        "body": sorted(layers) if body is None else body,
        "layers": layers,
        "versions": {name: number for name, number in versions(model).items() if number != 1},
        "description": vars(description),
    }


def write_packed(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes a file of a header and the tensors of the state, each of which is asked for twice."""
    shapes: dict[str, Tensor] = {}

    def seen() -> Iterator[tuple[str, Tensor]]:
        for name in sorted(tensors):
            tensor = tensors[name]
            shapes[name] = tensor.to("meta")
            yield name, tensor

    whole = {**header, "crc32": checksum(header, seen())}
    write_tensors(path, tensors, shapes, {"bitexp": json.dumps(whole)})


def layer_json(spec: LayerSpec, packing: Packing) -> dict[str, Any]:
    """A layer in the header: all that it is besides its tensors."""
    return {**spec.to_json(), "layout": packing.to_json()}


def owner_names(model: nn.Module) -> dict[str, str]:
    """For each name in the state the first one of the same tensor: what is tied is stored once."""
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {name: first.setdefault(id(tensor), name) for name, tensor in state.items()}


def portable(tensor: Tensor) -> Tensor:
    """As it is stored: on the CPU, contiguous, not shared, floats in fp32."""
    tensor = tensor.detach().cpu().contiguous().clone()
    return tensor.float() if tensor.is_floating_point() else tensor


def checksum(header: Mapping[str, Any], tensors: Iterable[tuple[str, Tensor]]) -> int:
    """CRC-32 over the header and over all tensors, sorted by name; safetensors has none of its own."""
    crc = zlib.crc32(json.dumps(header, sort_keys=True).encode())
    for name, tensor in tensors:
        crc = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data, crc)
    return crc


def checksum_of(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
    """The same of tensors that are all at hand, by name."""
    return checksum(header, sorted(tensors.items()))


def load_packed(path: Path | str, kernel: Kernel | str = "auto") -> tuple[nn.Module, dict[str, Any]]:
    """Rebuilds a frozen model from its file, for a kernel or its name, in eval mode on the CPU.

    Returns:
        the model, and how to prepare its inputs.

    Raises:
        UserError: the file is missing, damaged, or not of this format.
    """
    path = Path(path)
    return unpack(path, read_packed(path), as_kernel(kernel))


def unpack(path: Path, file: PackedFile, kernel: Kernel) -> tuple[nn.Module, dict[str, Any]]:
    """The same from what was read already; `path` is for errors."""
    header, tensors = file
    try:
        tensors = decoded(tensors)
        description = Description.of(header["description"])
        check_fits(description, header, tensors)
        try:
            model = rebuilt(description, header, tensors, kernel, without_weights())
        except (NotImplementedError, RuntimeError):  # it computes with its weights while it is built
            model = rebuilt(description, header, tensors, kernel, nullcontext())
        check_values(model)
    except Exception as error:  # whatever a header can make the constructors of a model raise
        if is_of_the_machine(error):
            raise
        raise UserError(f"{path} does not describe a model that can be built here: {error}") from error
    return model.eval(), description.preprocessing


def rebuilt(
    description: Description,
    header: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    kernel: Kernel,
    building: AbstractContextManager[None],
) -> nn.Module:
    """The frozen model with the tensors of its file. Raises `ValueError` where these are not its own."""
    with building:
        model = description.build().float()
        freeze_blank(model, header["layers"], kernel)
    made, owners = model.state_dict(), owner_names(model)
    check_types(made, owners, tensors, header["layers"])
    check_integers(made, owners, tensors)
    check_body(model, header["body"], header["layers"])
    own = {owner: tensors[owner].to(made[owner].dtype, copy=True) for owner in set(owners.values())}
    for name, parameter in model.named_parameters():  # the same object wherever it is tied
        own[name] = nn.Parameter(own[name], parameter.requires_grad)
    numbers = versions(model)  # of files that do not say them
    if "versions" in header:
        numbers = {**dict.fromkeys(numbers, 1), **header["versions"]}
    fill(model, with_versions({name: own[owner] for name, owner in owners.items()}, numbers))
    return model


def check_fits(description: Description, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Builds the model without memory, and compares its layers and sizes with those of the file.

    Raises:
        ValueError: they are others.
    """
    number, described = header["format"], header["layers"]
    count = TENSORS_AT_LEAST + TENSORS_FOR_EACH * len(tensors)
    try:
        with torch.device("meta"), Limited(count):
            model = description.build()
    except NotImplementedError:  # its constructor reads what it has computed by tensors
        with torch.device("meta"), Limited(count, numbers=True):
            model = description.build()
    layers = quantized_layers(model)
    if set(layers) != set(described):
        raise ValueError(f"its packed layers are {sorted(described)}, those of the model {sorted(layers)}")
    packings = {}
    for name, layer in layers.items():
        packings[name] = layer, packing_of(described[name], layer.spec)
        to_json = layer_json if number == FORMAT else layer_json_1
        expected = to_json(layer.spec, packings[name][1])
        if json.loads(json.dumps(expected)) != described[name]:
            raise ValueError(f"the layer {name} is {described[name]}, in the model {expected}")
    check_shapes(model, packings, owner_names(model), tensors)


def freeze_blank(model: nn.Module, described: Mapping[str, Any], kernel: Kernel) -> None:
    """Makes frozen layers without content of the quantized ones, as a header that fits describes them."""
    layers = quantized_layers(model)
    twins = {
        name: blank_twin(layer, packing_of(described[name], layer.spec), kernel)
        for name, layer in layers.items()
    }
    become_frozen(layers, twins)


def packing_of(described: Mapping[str, Any], spec: LayerSpec) -> Packing:
    """How a layer's codes lie in the file. Raises `ValueError` where they cannot be this layer's."""
    layout = described["layout"]
    if isinstance(layout, str):  # format 1
        low, stride = FORMAT_1[layout]
        count = (spec.levels.high - low) // stride + 1
        return Packing(layout, replace(LAYOUTS[layout], low=low, stride=stride, count=count))
    return Packing.of(layout["name"], spec)


def layer_json_1(spec: LayerSpec, packing: Packing) -> dict[str, Any]:
    """A layer as the header of format 1 has it."""
    return {
        "shape": spec.shape,
        "layout": packing.name,
        "norm": spec.norm,
        "act_qmax": 0 if spec.activations is None else spec.activations.absmax,
        "scaled_bias": spec.bias == "scaled",
        "conv": spec.conv,
    }


def read_packed(path: Path | str) -> PackedFile:
    """Header and tensors of a packed file.

    Raises:
        UserError: it is none, or damaged.
        OSError, MemoryError: it cannot be read, or not held.
    """
    header, tensors = read_parts(path, "bitexp", "packed file")
    parts = {key: type(part) for key, part in header.items()} if isinstance(header, dict) else {}
    if {"versions": dict, **parts} != {"versions": dict, **PARTS} or header["format"] not in (1, FORMAT):
        raise UserError(f"{path} is not a packed model of bitexp (format 1 or {FORMAT})")
    check_crc(path, header, tensors)
    return header, tensors


def read_parts(path: Path | str, key: str, kind: str) -> tuple[Any, dict[str, Tensor]]:
    """The JSON under a key in a file of safetensors, null where there is none, and the tensors.

    Args:
        kind: of file, for errors, which are those of `read_packed`.
    """
    try:
        with open_regular(Path(path)):  # which tells why it cannot be opened, as safetensors does not
            pass
        with safetensors.safe_open(str(path), framework="pt") as file:
            header = strict_json((file.metadata() or {}).get(key, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"there is no {kind} {path}") from None
    except Exception as error:  # whatever a damaged file can make its readers raise
        if is_of_the_machine(error):
            raise
        raise UserError(f"{path} is damaged or no safetensors file: {error}") from None
    return header, tensors


def check_crc(path: Path | str, header: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Takes the checksum out of a header. Raises `UserError` where it is another."""
    if header.pop("crc32") != checksum_of(header, tensors):
        raise UserError(f"{path} is damaged: its contents are not those that were written")


def sizes(file: PackedFile) -> dict[str, int]:
    """Bytes of the tensors in a packed file: of the body (its layers but for the biases) and of all."""
    header, tensors = file
    outside = {f"{name}.bias" for name in header["body"]}
    inside = tuple(f"{name}." for name in header["body"])
    body = sum(t.nbytes for name, t in tensors.items() if name.startswith(inside) and name not in outside)
    return {"body_bytes": body, "total_bytes": sum(t.nbytes for t in tensors.values())}
