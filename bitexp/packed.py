"""The packed file: a frozen model in one safetensors file that holds all that is needed to rebuild it.

The header is JSON: which model, quantizer and layers, and how inputs are prepared. Names in it are looked
up in the registries and nothing in it is executed, so a file from a stranger is safe to load.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save
from torch import Tensor, nn

from bitexp.errors import UserError
from bitexp.files import write_atomic
from bitexp.kernels import Kernel
from bitexp.kernels.frozen import FrozenLayer, FrozenSpec
from bitexp.models import MODELS
from bitexp.quant import QUANTIZERS
from bitexp.quant.convert import quantize

FORMAT = 1


@dataclass(frozen=True)
class Description:
    """How to build the model again: registry names with their arguments, and the layers' patterns."""

    model: str
    model_arguments: dict[str, Any]
    quantizer: str
    quantizer_arguments: dict[str, Any]
    include: list[str]
    exclude: list[str]
    preprocessing: dict[str, Any]

    def build(self) -> nn.Module:
        """The model with its quantized layers, untrained."""
        model = MODELS.get(self.model)(**self.model_arguments)
        quantizer = QUANTIZERS.get(self.quantizer)(**self.quantizer_arguments)
        quantize(model, quantizer, self.include, self.exclude)
        return model


def save_packed(path: Path, model: nn.Module, description: Description, body: list[str]) -> None:
    """Writes a frozen model; `body` names the layers a quantizer speaks for. Floats are stored in fp32."""
    layers = {n: m.spec.to_json() for n, m in model.named_modules() if isinstance(m, FrozenLayer)}
    header = {"format": FORMAT, "body": body, "layers": layers, "description": vars(description)}
    tensors = {name: portable(tensor) for name, tensor in model.state_dict().items()}
    write_atomic(path, save(tensors, {"bitexp": json.dumps(header)}))


def portable(tensor: Tensor) -> Tensor:
    """As it is stored: on the CPU, contiguous, not shared, floats in fp32."""
    tensor = tensor.detach().cpu().contiguous().clone()
    return tensor.float() if tensor.is_floating_point() else tensor


def load_packed(path: Path, kernel: Kernel) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuilds a frozen model from its file, for a kernel, in eval mode on the CPU.

    Returns:
        the model, and how to prepare its inputs.

    Raises:
        UserError: the file is missing, damaged, or not of this format.
    """
    header, tensors = read_packed(path)
    description = Description(**header["description"])
    model = description.build().float()
    for name, spec in header["layers"].items():
        parts = {part: tensors.pop(f"{name}.{part}", None) for part in ("packed", "scale", "bias")}
        if parts["packed"] is None or parts["scale"] is None:
            raise UserError(f"{path} has no weights for the layer {name}: the file is damaged")
        parent, _, child = name.rpartition(".")
        layer = FrozenLayer(FrozenSpec.from_json(spec), kernel=kernel, **parts)  # type: ignore[arg-type]
        setattr(model.get_submodule(parent), child, layer)
        tensors.update({f"{name}.{part}": t for part, t in parts.items() if t is not None})
    model.load_state_dict(tensors)
    return model.eval(), description.preprocessing


def read_packed(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a packed file. Raises `UserError` where it is none."""
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("bitexp", "null"))
            # cloned: on storage that is not aligned some products have other bits
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"there is no packed file {path}") from None
    except (safetensors.SafetensorError, ValueError) as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}") from None
    if not isinstance(header, Mapping) or header.get("format") != FORMAT:
        raise UserError(f"{path} is not a packed model of bitexp (format {FORMAT})")
    return dict(header), tensors


def sizes(path: Path) -> dict[str, int]:
    """Bytes of the tensors in a packed file: of the body (its layers' weights and steps) and of all."""
    header, tensors = read_packed(path)
    weights = {f"{name}.{part}" for name in header["body"] for part in ("weight", "packed", "scale")}
    body = sum(tensor.nbytes for name, tensor in tensors.items() if name in weights)
    return {"body_bytes": body, "total_bytes": sum(t.nbytes for t in tensors.values())}
