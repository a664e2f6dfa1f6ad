"""A folder for transformers: LLaMA's architecture, or BitNet's where there are sub-norms.

Four rows of codes lie in a byte, a quarter of the matrix apart: byte [r, c] holds those of rows r, R + r,
2R + r and 3R + r in bits 0-1, 2-3, 4-5 and 6-7, each as code + 1. `bitlinear` divides by `weight_scale`,
`autobitlinear` multiplies by it: nothing but `linear_class` tells which.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import save
from torch import Tensor, nn

from bitexp.common.files import write_atomic, write_json
from bitexp.deploy.exporters.decoder_form import (
    DecoderForm,
    check_int8,
    check_one_scale,
    check_plain,
    check_ternary,
    decoder_form,
)
from bitexp.deploy.exporters.exporter import (
    EXPORTERS,
    Exported,
    Exporter,
    InexpressibleError,
    Packed,
    quantizes,
)
from bitexp.deploy.exporters.tokenizer_files import write_tokenizer
from bitexp.deploy.frozen import FrozenLayer
from bitexp.quant.layers import QuantizedLayer
from bitexp.quant.modes import own

ROWS = 4
"""Rows of codes in a byte."""
IN_BLOCK = {
    "attn.norm": "input_layernorm",
    "ffn.norm": "post_attention_layernorm",
    "attn.sub_norm": "self_attn.attn_sub_norm",
    "ffn.sub_norm": "mlp.ffn_sub_norm",
    **{f"attn.{part}": f"self_attn.{part}_proj" for part in "qkvo"},
    **{f"ffn.{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}


def their_name(name: str) -> str:
    """The name of a norm or layer of the decoder in transformers."""
    if not name.startswith("blocks."):
        return {"norm": "model.norm", "head": "lm_head", "embed": "model.embed_tokens"}[name]
    _, number, part = name.split(".", 2)
    return f"model.layers.{number}.{IN_BLOCK[part]}"


@EXPORTERS.register("transformers")
class TransformersFolder(Exporter):
    """config.json, model.safetensors, generation_config.json and the tokenizer.

    Args:
        form: of quantized layers: `bitlinear` or `autobitlinear` with packed codes and int8 activations, or
            `float` with their weights as floats, where activations are floats too.
        license: for the README. base_model: the model on the hub that training began with, OWNER/NAME.
    """

    engine: ClassVar[str] = "transformers"

    def __init__(
        self,
        *,
        form: Literal["bitlinear", "autobitlinear", "float"] = "bitlinear",
        license: str = "unknown",
        base_model: str | None = None,
    ) -> None:
        self.form, self.license, self.base_model = form, license, base_model

    def check(self, model: nn.Module, tokenizer: str | None = None) -> None:
        form = decoder_form(model)
        body = form.body
        for name, layer in body.items():
            spec = check_plain(name, layer)
            if spec.activations is None or self.form == "float":
                if spec.activations is not None:
                    raise InexpressibleError(
                        f"form=float leaves activations as they are, and {name} has int8 ones; use "
                        "form=bitlinear"
                    )
                continue
            check_ternary(name, spec)
            check_int8(name, spec)
            check_one_scale(name, layer)
            if spec.shape[0] % ROWS:
                raise InexpressibleError(
                    f"{name} has {spec.shape[0]} outputs, and {ROWS} share a byte; choose model.dim and "
                    f"model.mlp_ratio so that all widths are multiples of {ROWS}"
                )
        floats = sorted(name for name, layer in body.items() if layer.spec.activations is None)
        if floats and len(floats) < len(body):
            raise InexpressibleError(
                f"the activations of {floats[0]} are floats and others int8, and transformers has the "
                "same for all quantized layers; train with one quantizer.activations for all of them"
            )
        if body and not set(form.linears) <= set(body):
            other = sorted(set(form.linears) - set(body))
            raise InexpressibleError(
                f"{other[0]} is not quantized, and transformers quantizes all layers of the blocks or none"
            )

    def write(self, packed: Packed, folder: Path) -> Exported:
        form = decoder_form(packed.model)
        tokenizer = packed.preprocessing.get("tokenizer")
        end = None if tokenizer is None else write_tokenizer(tokenizer, folder, form.model.context)
        write_json(folder / "config.json", config(form, self.packs(form) and self.form, end))
        write_json(folder / "generation_config.json", {"do_sample": False, "eos_token_id": end})
        write_atomic(folder / "model.safetensors", save(self.tensors(form), {"format": "pt"}))
        return Exported(self.exact(form), USAGE, self.card)

    def packs(self, form: DecoderForm) -> bool:
        """Whether codes are written, not floats."""
        return any(layer.spec.activations is not None for layer in form.body.values())

    def tensors(self, form: DecoderForm) -> dict[str, Tensor]:
        """All of them by their names there."""
        model = form.model
        found = {"model.embed_tokens.weight": model.embed.weight}
        found |= {f"{their_name(name)}.weight": gain for name, gain in form.gains.items()}
        for name, layer in form.linears.items():
            found |= self.linear(their_name(name), layer)
        if not form.tied:
            found |= self.linear("lm_head", model.head)
        return {name: tensor.detach().contiguous() for name, tensor in found.items()}

    def linear(self, name: str, layer: nn.Module) -> dict[str, Tensor]:
        """The tensors of a linear layer."""
        if not isinstance(layer, FrozenLayer):
            assert isinstance(layer, nn.Linear | QuantizedLayer)
            return {f"{name}.weight": own(layer, "weight")}
        quantized = layer.quantized()
        if layer.spec.activations is None:
            return {f"{name}.weight": quantized.dequantized()}
        scale = quantized.scale.reshape(1)
        return {
            f"{name}.weight": pack_rows(quantized.codes),
            f"{name}.weight_scale": 1 / scale if self.form == "bitlinear" else scale,
        }

    def exact(self, form: DecoderForm) -> list[str]:
        """What the README says of it."""
        if not self.packs(form):
            return ["Weights are the same floats; products differ in their last bits."]
        return [
            "Codes and scales are the same, activations become int8 codes by the same rule, and sums of "
            "codes are "
            "exact in both.",
            "Norms add in another order: now and then an activation code differs by one, and with it "
            "logits by "
            "about a hundredth.",
            "The folder is for exchange: transformers unpacks the weights, for speed and size use the "
            "packed file.",
        ]

    @property
    def card(self) -> dict[str, Any]:
        """What the hub reads."""
        return {
            "license": self.license,
            "base_model": self.base_model,
            "library_name": "transformers",
            "tags": ["bitexp", "bitnet", "quantization"],
        }


USAGE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer  # and the package accelerate

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
tokens = tokenizer("def ", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(tokens, max_new_tokens=100)[0]))
"""


def config(form: DecoderForm, linear_class: str | bool, end: int | None) -> dict[str, Any]:
    """config.json.

    Args:
        linear_class: of quantized layers; False where there are none.
    """
    model, kind = form.model, "BitNet" if form.sub_norms else "Llama"
    found: dict[str, Any] = {
        "architectures": [f"{kind}ForCausalLM"],
        "model_type": kind.lower(),
        "vocab_size": model.embed.num_embeddings,
        "hidden_size": model.embed.embedding_dim,
        "intermediate_size": form.hidden,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": form.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": form.activation,
        "max_position_embeddings": model.context,
        "rms_norm_eps": model.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_base},
        "rope_theta": model.rope_base,  # read by version 4 and by mlx-lm
        "tie_word_embeddings": form.tied,
        "bos_token_id": None,
        "eos_token_id": end,
        "dtype": "float32",
    }
    if linear_class:
        found["quantization_config"] = {
            "quant_method": "bitnet",
            "linear_class": linear_class,
            "quantization_mode": "offline",
            "use_rms_norm": False,
            "modules_to_not_convert": [] if quantizes(model.head) else ["lm_head"],
        }
    return found


def pack_rows(codes: Tensor) -> Tensor:
    """int8 codes -1..1 `[out, in]` -> uint8 `[out / 4, in]`, rows a quarter apart in a byte."""
    digits = (codes + 1).to(torch.uint8).unflatten(0, (ROWS, -1))
    return sum(digits[place] << 2 * place for place in range(ROWS))
