"""A decoder in the terms of other engines: gains of its norms, linear layers, an architecture.

The norm that a quantized layer brings is one without gain before it: where q, k and v have one, that is the
norm of their block with a gain of ones; that of o and down is a sub-norm, as BitNet has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitexp.deploy.exporters.exporter import InexpressibleError, quantizes, scale_dims, spec_of
from bitexp.deploy.frozen import FrozenLayer
from bitexp.models.decoder import Decoder
from bitexp.quant.layers import QuantizedLayer
from bitexp.quant.modes import own
from bitexp.quant.spec import EPS, LayerSpec

FED = {"attn.norm": ("attn.q", "attn.k", "attn.v"), "attn.sub_norm": ("attn.o",)}
FED |= {"ffn.norm": ("ffn.gate", "ffn.up"), "ffn.sub_norm": ("ffn.down",)}
"""The norms of a block, and the linear layers that each feeds."""
NORM = "every engine here has RMS norms; train with quantizer.norm=rms"


@dataclass(frozen=True)
class DecoderForm:
    """A decoder as engines have it."""

    model: Decoder
    sub_norms: bool
    """Whether there is a norm before `o` and before `down`: BitNet's architecture, else LLaMA's."""
    activation: str
    heads: int
    hidden: int
    tied: bool
    gains: dict[str, Tensor]
    """Of the norms, `[features]`, by their names here."""
    linears: dict[str, nn.Module]
    """The linear layers of the blocks, by their names here."""

    @property
    def body(self) -> dict[str, FrozenLayer | QuantizedLayer]:
        """The quantized layers, of the blocks and perhaps the head."""
        named = {**self.linears, "head": self.model.head}
        return {
            name: layer
            for name, layer in named.items()
            if isinstance(layer, FrozenLayer | QuantizedLayer) and quantizes(layer)
        }


def decoder_form(model: nn.Module) -> DecoderForm:
    """A decoder, frozen or not trained yet, in the terms of other engines.

    Raises:
        InexpressibleError: it is none, or it computes what no such engine does.
    """
    if not isinstance(model, Decoder):
        raise InexpressibleError(f"only decoders can go there, and this is a {type(model).__name__}")
    if model.qk_norm or model.qkv_bias:
        what = "norms of single heads" if model.qk_norm else "biases of queries, keys and values"
        raise InexpressibleError(
            f"{what} are not written; train with model.qk_norm=false model.qkv_bias=false"
        )
    gains: dict[str, Tensor] = {}
    linears: dict[str, nn.Module] = {}
    for number, block in enumerate(model.blocks):
        for norm, fed in FED.items():
            layers = {f"blocks.{number}.{name}": block.get_submodule(name) for name in fed}
            linears |= layers
            gain = gain_of(block.get_submodule(norm), f"blocks.{number}.{norm}", list(layers.values()), model)
            if gain is not None:
                gains[f"blocks.{number}.{norm}"] = gain
    gain = gain_of(model.norm, "norm", [model.head], model)
    if gain is not None:
        gains["norm"] = gain
    whole = {f"blocks.{i}.{norm}" for i in range(len(model.blocks)) for norm in FED} | {"norm"}
    missing, sub = whole - set(gains), {name for name in whole if name.endswith("sub_norm")}
    if missing and missing != sub:
        raise InexpressibleError(
            f"there is no norm at {', '.join(sorted(missing - sub) or sorted(missing))}, and engines have "
            "one in "
            "every block; train with quantizer.norm=rms for all layers or for none"
        )
    width, dim = model.heads * model.head_dim, model.embed.embedding_dim
    if not missing and width != dim:
        raise InexpressibleError(
            f"the norm before the output of attention is over {width} features, in their architecture with "
            f"sub-norms over as many as model.dim={dim}; train with model.head_dim=null"
        )
    first: Any = model.blocks[0]
    hidden = spec.shape[0] if (spec := spec_of(first.ffn.gate)) else first.ffn.gate.out_features
    return DecoderForm(
        model=model,
        sub_norms=not missing,
        activation=first.ffn.activation,
        heads=first.attn.heads,
        hidden=int(hidden),
        tied=not quantizes(model.head) and model.head.weight is model.embed.weight,
        gains=gains,
        linears=linears,
    )


def gain_of(norm: nn.Module, name: str, fed: Sequence[nn.Module], model: Decoder) -> Tensor | None:
    """The gain `[features]` of the norm that some layers share; None where there is no norm.

    Raises:
        InexpressibleError: no RMS norm, two of them, or another eps.
    """
    inner = {spec.norm if (spec := spec_of(layer)) else "none" for layer in fed}
    if "layer" in inner:
        raise InexpressibleError(f"the layers behind {name} have a layer norm of their own, and {NORM}")
    if len(inner) > 1:
        raise InexpressibleError(f"only some of the layers behind {name} norm their input themselves")
    if inner == {"none"}:
        return norm.weight if isinstance(norm, nn.RMSNorm) else None
    if isinstance(norm, nn.RMSNorm):
        raise InexpressibleError(f"{name} and the layers behind it norm twice")
    if model.norm_eps != EPS:
        raise InexpressibleError(
            f"the norms of quantized layers have an eps of {EPS:g}, those of the model "
            f"{model.norm_eps:g}, and "
            f"engines have one for all; train with model.norm_eps={EPS:g}"
        )
    first = fed[0]
    assert isinstance(first, FrozenLayer | QuantizedLayer)
    device = first.scale.device if isinstance(first, FrozenLayer) else own(first, "weight").device
    return torch.ones(first.spec.shape[1], device=device)


def check_plain(name: str, layer: FrozenLayer | QuantizedLayer) -> LayerSpec:
    """The spec of a quantized layer that is codes times scales, no more.

    Raises:
        InexpressibleError: it has a transform, a sparsifier, shifts, planes, another norm, or a constant.
    """
    spec = layer.spec
    for what, there in (
        ("a transform of its inputs", spec.transform is not None),
        ("a sparsifier", spec.sparsifier is not None),
        ("shifted weights", spec.shift),
        ("weights of several planes", spec.levels.planes > 1),
        ("a norm of its outputs", spec.output_norm != "none"),
        ("a constant that is added to its outputs", adds_constant(layer)),
    ):
        if there:
            raise InexpressibleError(f"{name} has {what}, which no such engine computes")
    return spec


def adds_constant(layer: FrozenLayer | QuantizedLayer) -> bool:
    """Whether outputs are more than a product: by a bias, or by what weights add, one once frozen."""
    adds = isinstance(layer, QuantizedLayer) and layer.parts.weights.has_output_offset
    return adds or own(layer, "bias") is not None


def check_int8(name: str, spec: LayerSpec) -> None:
    """Raises `InexpressibleError` where activations are not BitNet's int8 codes."""
    if spec.activations is None or spec.absmax != 127 or spec.activations.levels.largest != 127:
        chosen = "floats" if spec.activations is None else text(spec.activations.part.to_json())
        raise InexpressibleError(
            f"the activations of {name} are {chosen}, those of the engine int8 by the largest of a token; "
            "train "
            "with quantizer.activations.name=int8 and quantizer.activations.qmax=127"
        )


def check_one_scale(name: str, layer: FrozenLayer | QuantizedLayer) -> None:
    """Raises `InexpressibleError` where a layer has more than one scale."""
    if scale_dims(layer):
        raise InexpressibleError(
            f"{name} has a scale for each {'row' if scale_dims(layer) == 1 else 'group'}, and the engine "
            "one for "
            "a layer; train with quantizer.weights.granularity=tensor"
        )


def check_ternary(name: str, spec: LayerSpec) -> None:
    """Raises `InexpressibleError` where codes are others than -1, 0 and 1."""
    if spec.levels.largest > 1:
        raise InexpressibleError(
            f"the codes of {name} are {spec.levels.low}..{spec.levels.high}, and the engine's -1, 0 and 1"
        )


def text(section: dict[str, object]) -> str:
    """A part with its options, as it is typed."""
    options = ", ".join(f"{key}={value}" for key, value in section.items() if key != "name")
    return f"{section['name']}{f' ({options})' if options else ''}"
