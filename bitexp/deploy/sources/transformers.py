"""A folder in the layout of transformers: config.json and *.safetensors, of models that our decoder computes.

LLaMA, Mistral (within its window), Qwen2, Qwen3 and BitNet, the latter with packed or latent weights; of
LLaMA also the packed form of Falcon-E and others. The package itself is not needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitexp.common.errors import UserError
from bitexp.common.files import read_json, read_text
from bitexp.deploy.frozen import FrozenLayer, freeze
from bitexp.deploy.sources.base import SOURCES, Source, Which, check_same, finite, sound, told
from bitexp.deploy.sources.names import DECODER, in_floats, renamed
from bitexp.deploy.sources.tensor_files import Shapes, header_of, read_safetensors
from bitexp.kernels import Kernel, as_kernel
from bitexp.models import MODELS
from bitexp.quant import quantize
from bitexp.quant.layers import set_backend
from bitexp.quant.parts import WEIGHTS, WeightQuantizer
from bitexp.quant.presets import as_quantizer

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "bitnet")
KNOWN = {"silu": "silu", "relu2": "relu2", "swish": "silu"}
DEFAULTS: dict[str, dict[str, Any]] = {
    "bitnet": {"rope_theta": 500000.0, "rms_norm_eps": 1e-5},
    "mistral": {"sliding_window": 4096},
    "qwen3": {"head_dim": 128},
}
"""What a config.json that does not say it means, where that is not the same in all families."""
CHOSEN = {"linear_class": ("bitlinear", "autobitlinear"), "quantization_mode": ("offline", "online")}
"""What a quantization_config may say; first what it means where it says nothing."""
INDEX = "model.safetensors.index.json"
SCALE = ".weight_scale"
CODES = 4
"""Codes in a byte of the packed form."""


@SOURCES.register("transformers")
class Transformers(Source):
    """See above. Its files are those that the index names, or `model.safetensors`."""

    kind = "transformers folder"

    @classmethod
    def recognizes(cls, text: str) -> bool:
        return (Path(text).expanduser() / "config.json").is_file()

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json."""
        with told(self.text):
            if not isinstance(found := read_json(self.path / "config.json"), dict):
                raise UserError(f"{self.path / 'config.json'} is damaged")
            return found

    @property
    def shards(self) -> list[Path]:
        """The files of tensors.

        Raises:
            UserError: there are none.
        """
        names = ["model.safetensors"]
        if (self.path / INDEX).is_file():
            index = read_json(self.path / INDEX)
            table = index.get("weight_map") if isinstance(index, dict) else None
            if not isinstance(table, dict) or not table:
                raise UserError(f"{self.path / INDEX} is damaged")
            names = sorted({str(name) for name in table.values()})
        files = [self.path / name for name in names]
        for name, file in zip(names, files, strict=True):
            if Path(name).name != name:
                raise UserError(f"{self.path / INDEX} names a file outside of its folder: {name}")
            if not file.is_file():
                hint = "; save_pretrained(..., safe_serialization=True) writes it"
                raise UserError(f"{self.path} has no {name}{hint if len(files) == 1 else ''}")
        return files

    @property
    def files(self) -> Sequence[Path]:
        return [self.path / "config.json", *self.shards]

    @cached_property
    def shapes(self) -> Shapes:
        """The shapes of all tensors, as stored, by their names there."""
        found: Shapes = {}
        for file in self.shards:
            if not (shapes := header_of(file)[1]):
                raise UserError(f"{file} is damaged or no safetensors file")
            found |= shapes
        return found

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """The arguments of our decoder that computes the same."""
        with told(self.text):
            return decoder_arguments(self.config, self.shapes)

    @cached_property
    def packed(self) -> list[str]:
        """The linear layers that are stored as codes, by our names."""
        names = (renamed(DECODER, n.replace(SCALE, ".weight")) for n in self.shapes if n.endswith(SCALE))
        return sorted(name.removesuffix(".weight") for name in names if name)

    @property
    def ternary(self) -> list[str]:
        """The linear layers that are ternary when it computes, by our names."""
        chosen = self.config.get("quantization_config")
        if chosen is None:
            return []
        with told(self.text):
            return ternary_layers(chosen, self.packed, self.arguments["depth"])

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "path": self.text,
            "identity": self.identity,
            "model": "decoder",
            "model_arguments": self.arguments,
            "quantizer": {"name": "b158" if self.ternary else "full"},
        }

    @property
    def tokenizer(self) -> str | None:
        file = self.path / "tokenizer.json"
        if not file.is_file():
            return None
        if not isinstance(read_json(file), dict):
            raise UserError(f"{file} is damaged: replace it, or remove it where no text is to be written")
        return read_text(file)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors as stored, by our names; scales of codes as `NAME.weight_scale`."""
        with told(self.text):
            with torch.device("meta"):
                blank = MODELS.get("decoder")(**self.arguments)
            expected = {name: tuple(tensor.shape) for name, tensor in blank.state_dict().items()}
            found: dict[str, str] = {}
            for name in self.shapes:
                plain = renamed(DECODER, name.replace(SCALE, ".weight"))
                if plain is None:
                    raise ValueError(f"our decoder has no place for its tensor {name}")
                found[name] = plain + "_scale" if name.endswith(SCALE) else plain
            for layer in self.packed:
                out, inputs = expected[f"{layer}.weight"]
                expected |= {f"{layer}.weight": (out // CODES, inputs), f"{layer}.weight_scale": (1,)}
            if self.arguments["tied"]:
                del expected["head.weight"]
                found = {name: ours for name, ours in found.items() if ours != "head.weight"}
            check_same(expected, {ours: self.shapes[name] for name, ours in found.items()})
            return {
                found[n]: t for file in self.shards for n, t in read_safetensors(file).items() if n in found
            }

    def weights(self, which: Which = "best", model: str | None = None) -> dict[str, Tensor]:
        with told(self.text):
            state = {n: t for n, t in self.tensors.items() if not n.endswith(SCALE.lstrip("."))}
            for layer in self.packed:
                codes, scale = self.codes(layer)
                state[f"{layer}.weight"] = codes.float() * scale
            state = sound(state)
            if self.arguments["tied"]:
                state["head.weight"] = state["embed.weight"]
            return state

    def stored(self, name: str) -> Tensor:
        """Floats in the type that they are stored in. Raises `ValueError` where they are not finite."""
        tensor = finite(name, self.tensors[name])
        return tensor if tensor.element_size() == 2 else tensor.float()

    def codes(self, layer: str) -> tuple[Tensor, Tensor]:
        """The ternary codes of a layer, and what multiplies them, a scalar; of latents those of BitNet b1.58.

        Raises:
            ValueError: they are not ternary, or the scale is none.
        """
        if layer not in self.packed:
            latents = self.stored(f"{layer}.weight").float()
            weights = as_quantizer("b158").options.weights
            assert weights is not None
            part: WeightQuantizer = WEIGHTS.get(weights.name)(latents)
            quantized = part.quantize(latents)
            return quantized.codes, quantized.scale
        codes = unpacked(self.tensors[f"{layer}.weight"])
        scale = self.tensors[f"{layer}.weight_scale"].float().reshape(())
        if self.config["quantization_config"].get("linear_class", "bitlinear") == "bitlinear":
            scale = scale.reciprocal()  # this class divides by what is stored, the other multiplies
        if not (math.isfinite(float(scale)) and float(scale) > 0):
            raise ValueError(f"the scale of {layer} is {float(scale)}")
        return codes, scale

    def model(self, which: Which = "best", kernel: Kernel | str = "auto") -> nn.Module:
        kernel, state = as_kernel(kernel), self.weights(which)
        model: nn.Module = MODELS.get("decoder")(**self.arguments)
        model.load_state_dict(state)
        if self.ternary:
            quantize(model, "b158", self.ternary, in_floats(self.ternary))
            set_backend(model, kernel.backend)
        if self.packed:
            for name, layer in freeze(model, kernel=kernel).items():
                codes, scale = self.codes(name)
                restore(layer, codes, scale)
        return model.eval()


def decoder_arguments(config: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """The arguments of our decoder for a config.json.

    Raises:
        ValueError: it says what the decoder does not compute.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"its model_type is {family}; the decoder computes {', '.join(FAMILIES)}")
    config = {**DEFAULTS.get(family, {}), **config}
    dim, heads = whole(config, "hidden_size"), whole(config, "num_attention_heads")
    hidden, context = whole(config, "intermediate_size"), whole(config, "max_position_embeddings")
    activation = config.get("hidden_act", "relu2" if family == "bitnet" else "silu")
    if activation not in KNOWN:
        raise ValueError(f"its hidden_act is {activation}; the decoder computes {', '.join(KNOWN)}")
    if (depth := whole(config, "num_hidden_layers")) > len(shapes):
        raise ValueError(f"it has {len(shapes)} tensors, and by its config.json {depth} layers")
    ratio = hidden / dim
    if round(dim * ratio) != hidden:
        raise ValueError(f"its intermediate_size {hidden} is no multiple of hidden_size {dim} in floats")
    biased = {name.rpartition("_proj.bias")[0][-1:] for name in shapes if name.endswith("_proj.bias")}
    if biased - set("qkv") or config.get("mlp_bias"):
        raise ValueError("it has biases beyond those of q, k and v, which the decoder has not")
    window = config.get("sliding_window")
    slides = config.get("use_sliding_window", family == "mistral")
    if slides and isinstance(window, int):
        context = min(context, window)
    if not isinstance(tied := config.get("tie_word_embeddings", False), bool):
        raise ValueError(f"its config.json has {tied!r} as tie_word_embeddings, which is true or false")
    arguments = {
        "vocabulary": whole(config, "vocab_size"),
        "context": context,
        "dim": dim,
        "depth": depth,
        "heads": heads,
        "kv_heads": whole(config, "num_key_value_heads", heads),
        "mlp_ratio": ratio,
        "activation": KNOWN[activation],
        "sub_norm": family == "bitnet",
        "tied": tied,
        "rope_base": rope_base(config),
        "norm_eps": number(config.get("rms_norm_eps", 1e-6)),
        "init_std": None,
        "dropout": 0.0,
    }
    head_dim = config.get("head_dim") or dim // heads
    if head_dim != dim // heads:
        arguments["head_dim"] = whole({"head_dim": head_dim}, "head_dim")
    if biased:
        arguments["qkv_bias"] = True
    if family == "qwen3":
        arguments["qk_norm"] = True
    return arguments


def whole(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A size in a config. Raises `ValueError` where it is none."""
    value = config.get(key) if config.get(key) is not None else default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"its config.json has {value!r} as {key}")
    return value


def number(value: Any) -> float:
    """A positive number. Raises `ValueError` where it is none."""
    if not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"its config.json has {value!r} where a positive number should be")
    return float(value)


def rope_base(config: Mapping[str, Any]) -> float:
    """The base of rotary frequencies. Raises `ValueError` for frequencies that are scaled."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"its rotary positions are of the type {kind}, and the decoder computes the default")
    return number(rope.get("rope_theta", config.get("rope_theta", 10000.0)))


def ternary_layers(chosen: Any, packed: Sequence[str], depth: int) -> list[str]:
    """The layers that a quantization_config makes ternary, by our names.

    Raises:
        ValueError: it is not BitNet's.
    """
    if not isinstance(chosen, Mapping) or chosen.get("quant_method") != "bitnet":
        method = chosen.get("quant_method") if isinstance(chosen, Mapping) else chosen
        raise ValueError(f"it is quantized by {method}; only bitnet is known, and weights as floats")
    for key, words in CHOSEN.items():
        if (word := chosen.get(key, words[0])) not in words:
            raise ValueError(f"its quantization_config has {key}={word!r}. Known: {', '.join(words)}")
    if chosen.get("use_rms_norm"):
        raise ValueError("its layers have norms of their own (use_rms_norm), which the decoder has not")
    if chosen.get("quantization_mode", "offline") == "offline":
        if not packed:
            raise ValueError("its quantization_config says that weights are packed, and none is")
        return list(packed)
    kept = chosen.get("modules_to_not_convert")
    if kept is not None and set(kept) != {"lm_head"}:
        raise ValueError(
            f"its quantization_config leaves {', '.join(map(str, kept)) or 'no layer'} in floats "
            "(modules_to_not_convert), and latent weights are known with lm_head left out alone"
        )
    parts = [*(f"attn.{part}" for part in "qkvo"), "ffn.gate", "ffn.up", "ffn.down"]
    return [f"blocks.{layer}.{part}" for layer in range(depth) for part in parts]


def unpacked(packed: Tensor) -> Tensor:
    """Codes `[out, in]` from uint8 `[out / 4, in]`: a byte has those of rows a quarter of all apart.

    Raises:
        ValueError: they are no ternary codes.
    """
    if packed.dtype != torch.uint8:
        raise ValueError(f"its packed weights are {packed.dtype} and should be uint8")
    codes = torch.cat([(packed >> 2 * place) & 3 for place in range(CODES)]).to(torch.int8) - 1
    if bool((codes > 1).any()):
        raise ValueError("its packed weights are damaged: they hold codes that are not ternary")
    return codes


def restore(layer: FrozenLayer, codes: Tensor, scale: Tensor) -> None:
    """Puts other codes and another scale into a frozen layer."""
    layer.packed.copy_(layer.packing.layout.pack(codes.flatten(1)))
    layer.scale.copy_(scale)
    layer.use(layer.kernel)
