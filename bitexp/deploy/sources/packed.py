"""A packed file of ours: codes, and what they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitexp.common.errors import UserError
from bitexp.deploy.description import Description
from bitexp.deploy.frozen import FrozenLayer
from bitexp.deploy.packed_file import PackedFile, read_packed, unpack
from bitexp.deploy.sources.base import SOURCES, Source, Which, sound, told
from bitexp.deploy.sources.tensor_files import header_of
from bitexp.kernels import Kernel, as_kernel
from bitexp.quant.product import Quantized
from bitexp.quant.spec import Geometry


@SOURCES.register("packed file")
class Packed(Source):
    """A file `packed.safetensors`, by itself. It has no latents: its weights are what its codes stand for."""

    kind = "packed file"

    @classmethod
    def recognizes(cls, text: str) -> bool:
        path = Path(text).expanduser()
        return path.suffix == ".safetensors" and path.is_file() and "bitexp" in header_of(path)[0]

    @property
    def files(self) -> Sequence[Path]:
        return [self.path]

    @cached_property
    def file(self) -> PackedFile:
        """Header and tensors."""
        return read_packed(self.path)

    @cached_property
    def description(self) -> Description:
        """What model it is of."""
        with told(self.text):
            return Description.of(self.file[0]["description"])

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "path": self.text,
            "identity": self.identity,
            "model": self.description.model,
            "model_arguments": self.description.model_arguments,
            "quantizer": self.description.quantizer,
        }

    @property
    def tokenizer(self) -> str | None:
        return tokenizer_of(self.description)

    def weights(self, which: Which = "best", model: str | None = None) -> dict[str, Tensor]:
        with told(self.text):
            return sound(dequantized_weights(self.model(which, "reference")))

    def model(self, which: Which = "best", kernel: Kernel | str = "auto") -> nn.Module:
        if which != "best":
            raise UserError(f"{self.text} is a packed file: it has one set of weights, which is 'best'")
        return unpack(self.path, self.file, as_kernel(kernel))[0]


def tokenizer_of(description: Description) -> str | None:
    """The tokenizer of the data that a model was trained on, where it has one."""
    text = description.preprocessing.get("tokenizer")
    return text if isinstance(text, str) else None


def dequantized_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state of a frozen model with the weights that its codes stand for, as the plain model names them.

    A linear transform of the inputs is in these weights. What has no counterpart there, such as a norm of
    outputs, is left out.
    """
    frozen = {name: layer for name, layer in model.named_modules() if isinstance(layer, FrozenLayer)}
    inside = tuple(f"{name}." for name in frozen)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(inside)}
    for name, layer in frozen.items():
        state[f"{name}.weight"] = effective_weight(layer)
        if layer.bias is not None:
            state[f"{name}.bias"] = layer.bias
    return state


@torch.no_grad()
def effective_weight(layer: FrozenLayer) -> Tensor:
    """What multiplies the normed input `[out, ...]`: codes times scales, behind the layer's transform."""
    weight = Quantized(layer._codes(), layer.scale, layer.shift).dequantized()
    if layer.transform is None:
        return weight
    dim = Geometry(layer.spec.conv).feature_dim
    if layer.spec.conv is not None and layer.spec.conv[3] > 1:
        raise ValueError(f"the transform of {layer.name} mixes the groups of a convolution")
    weight = layer.transform(weight, dim)  # symmetric, or a factor for each input
    if layer.transform.has_addend:
        constant: Tensor = layer.transform.get_parameter("constant")
        weight = weight + layer.transform.per_feature(constant)
    return weight
