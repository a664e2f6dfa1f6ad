"""A GGUF file for llama.cpp: its architecture `llama`, or `bitnet` where there are sub-norms.

Codes with block scales of 1 and one fp32 scale beside them (`.scale`, multiplied after the product) are the
exact form. Activations are what differs: int8 with a scale for every 256 inputs where weights are TQ2_0,
TQ1_0 or Q1_0, floats where they are F16 or F32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bitexp.common.errors import UserError
from bitexp.deploy.exporters.decoder_form import DecoderForm, check_int8, check_plain, decoder_form
from bitexp.deploy.exporters.exporter import (
    EXPORTERS,
    Exported,
    Exporter,
    InexpressibleError,
    Packed,
    quantizes,
    scale_dims,
)
from bitexp.deploy.exporters.gguf_blocks import BINARY_BLOCK, BLOCK, q1_0, tq1_0, tq2_0
from bitexp.deploy.exporters.tokenizer_files import vocabulary
from bitexp.deploy.frozen import FrozenLayer
from bitexp.quant.layers import QuantizedLayer
from bitexp.quant.levels import BINARY

Array = NDArray[Any]
Kind = Literal["auto", "tq2_0", "tq1_0", "q1_0", "f16", "f32"]

BLOCKS = {"tq2_0": (BLOCK, tq2_0), "tq1_0": (BLOCK, tq1_0), "q1_0": (BINARY_BLOCK, q1_0)}
FILE_TYPES = {"tq2_0": 37, "tq1_0": 36, "q1_0": 40, "f16": 1, "f32": 0}
"""llama.cpp's numbers for what most of a file is made of."""
NAMES = {
    "attn.norm": "attn_norm", "attn.sub_norm": "attn_sub_norm",
    "ffn.norm": "ffn_norm", "ffn.sub_norm": "ffn_sub_norm",
    "attn.q": "attn_q", "attn.k": "attn_k", "attn.v": "attn_v", "attn.o": "attn_output",
    "ffn.gate": "ffn_gate", "ffn.up": "ffn_up", "ffn.down": "ffn_down",
}  # fmt: skip


def their_name(name: str) -> str:
    """The name of a norm or layer of the decoder in llama.cpp."""
    if not name.startswith("blocks."):
        return {"norm": "output_norm", "head": "output"}[name]
    _, number, part = name.split(".", 2)
    return f"blk.{number}.{NAMES[part]}"


@EXPORTERS.register("gguf")
class GgufFile(Exporter):
    """model.gguf.

    Args:
        type: of quantized layers: `tq2_0` (2.06 bits), `tq1_0` (1.69), `q1_0` (1.125, binary), `f16`, `f32`;
            `auto` is tq2_0 where all rows are multiples of 256 long, else f16.
        license: for the README. base_model: the model on the hub that training began with, OWNER/NAME.
    """

    engine: ClassVar[str] = "llama.cpp"

    def __init__(
        self, *, type: Kind = "auto", license: str = "unknown", base_model: str | None = None
    ) -> None:
        self.type, self.license, self.base_model = type, license, base_model

    def check(self, model: nn.Module, tokenizer: str | None = None) -> None:
        form = decoder_form(model)
        if tokenizer is not None:
            vocabulary(tokenizer)
        if form.activation != "silu":
            raise InexpressibleError(
                f"model.activation={form.activation} is computed as SiLU there, without a word; train with "
                "model.activation=silu"
            )
        if form.sub_norms and not form.tied:
            raise InexpressibleError(
                "its architecture with sub-norms has a head that is the embedding; train with model.tied=true"
            )
        if not form.body and self.type not in ("auto", "f32"):
            raise InexpressibleError(
                f"type={self.type} is for quantized layers, and there are none; leave it out: weights are F32"
            )
        for name, layer in form.body.items():
            spec = check_plain(name, layer)
            if spec.activations is not None:
                check_int8(name, spec)
            self.check_type(name, layer)

    def check_type(self, name: str, layer: FrozenLayer | QuantizedLayer) -> None:
        """Raises `InexpressibleError` where the type that was asked for cannot hold a layer."""
        kind, levels, inputs = self.type, layer.spec.levels, layer.spec.shape[1]
        several = scale_dims(layer) > 0 and name != "head"  # which is F32 beside others that are F16
        if kind in BLOCKS and inputs % BLOCKS[kind][0]:
            raise InexpressibleError(
                f"{name} has {inputs} inputs, and type={kind} takes multiples of {BLOCKS[kind][0]}; use "
                f"type={'f32' if several else 'f16'}"
            )
        if kind == "f16" and several:
            raise InexpressibleError(
                f"{name} has several scales, and type=f16 holds one beside the codes; use type=f32"
            )
        if kind == "q1_0" and levels != BINARY:
            raise InexpressibleError(f"type=q1_0 holds codes -1 and 1, and {name} has others; use type=tq2_0")
        if kind in ("tq1_0", "tq2_0") and levels.largest > 1:
            raise InexpressibleError(
                f"type={kind} holds codes -1, 0 and 1, and {name} has others; use type=f32"
            )
        group = layer.spec.weights.options.get("group_size") if layer.spec.weights else None
        if kind in BLOCKS and scale_dims(layer) == 2 and (group or 1) % BLOCKS[kind][0]:
            raise InexpressibleError(
                f"{name} has scales for groups of {group}, and type={kind} for {BLOCKS[kind][0]}; use "
                "type=f32"
            )

    def kind(self, form: DecoderForm) -> str:
        """The type of quantized layers; `f32` where there are none."""
        body = form.body.values()
        if not body:
            return "f32"
        if self.type != "auto":
            return self.type
        if any(layer.spec.levels.largest > 1 or scale_dims(layer) == 2 for layer in body):
            return "f32"
        if any(layer.spec.activations is None or layer.spec.shape[1] % BLOCK for layer in body):
            return "f16" if all(scale_dims(layer) == 0 for layer in body) else "f32"
        return "tq2_0"

    def write(self, packed: Packed, folder: Path) -> Exported:
        form = decoder_form(packed.model)
        kind = self.kind(form)
        write_gguf(folder / "model.gguf", form, kind, packed.name, packed.preprocessing.get("tokenizer"))
        tags = ["bitexp", "gguf", "quantization"]
        metadata = {"license": self.license, "base_model": self.base_model, "tags": tags}
        return Exported(exact(form, kind), USAGE, metadata, "bash")


USAGE = """\
llama-cli -m model.gguf -no-cnv --temp 0 -n 100 -p "def "
"""


def exact(form: DecoderForm, kind: str) -> list[str]:
    """What the README says of it."""
    if not form.body:
        return [f"Weights are {kind.upper()}; products differ in their last bits."]
    body = list(form.body.values())
    scales = "the scale of a layer in fp32 beside its codes"
    if kind in BLOCKS and "head" in form.body:
        scales += ", of the head in fp16, up to 5e-4 off"
    if kind in BLOCKS and any(scale_dims(layer) for layer in body):
        scales = "scales in fp16, up to 5e-4 off"
    weights = f"Weights of quantized layers are {kind.upper()}, the same codes; {scales}."
    if kind == "f32":
        weights = "Weights of quantized layers are F32, codes times scale: the same values."
    if all(layer.spec.activations is None for layer in body):
        return [weights, "Activations are floats, as in training."]
    if kind not in BLOCKS:
        return [
            weights,
            "Activations are floats there, in training they were int8: logits differ by about 1 %.",
        ]
    if all(layer.spec.shape[1] == BLOCK for layer in body):
        return [weights, "Activations are int8 by the largest of a token, as in training."]
    return [
        weights,
        "Activations are int8 with a scale for every 256 inputs there, in training for a token: logits "
        "differ by "
        "about 1 %.",
    ]


@dataclass
class Writer:
    """A file in the making, with llama.cpp's names and orders."""

    file: Any
    form: DecoderForm
    kind: str

    @property
    def turns(self) -> bool:
        """Whether rotary pairs lie beside each other: so for `llama`, in `bitnet` half a head apart as "
        "here."""
        return not self.form.sub_norms

    def layer(self, name: str, layer: nn.Module) -> None:
        """A linear layer: codes with scales, or floats."""
        rows = self.order(name)
        theirs = their_name(name)
        if not (isinstance(layer, FrozenLayer) and quantizes(layer)):
            self.floats(theirs, array(layer.weight), rows)
            return
        quantized = layer.quantized()
        codes, scale = array(quantized.codes).astype(np.int8), array(quantized.scale)
        if self.kind == "f32" or (name == "head" and self.kind == "f16"):
            self.floats(theirs, array(quantized.dequantized()), rows)
            return
        if rows is not None:
            codes, scale = codes[rows], scale[rows] if scale.ndim else scale
        if name == "head" and scale.ndim == 0:
            scale = np.repeat(scale, len(codes))  # in the blocks: there is no place for one beside its codes
        if scale.ndim == 0:
            self.file.add_tensor(f"{theirs}.scale", scale.reshape(1))
        if self.kind == "f16":
            assert scale.ndim == 0
            self.file.add_tensor(f"{theirs}.weight", codes.astype(np.float16))
            return
        block, pack = BLOCKS[self.kind]
        kinds = library().GGMLQuantizationType
        packed = pack(codes, block_scales(scale, codes.shape, block))
        self.file.add_tensor(f"{theirs}.weight", packed, raw_dtype=getattr(kinds, self.kind.upper()))

    def floats(self, name: str, weight: Array, rows: Array | None) -> None:
        """A weight in fp32."""
        self.file.add_tensor(f"{name}.weight", weight if rows is None else np.ascontiguousarray(weight[rows]))

    def order(self, name: str) -> Array | None:
        """Where the rows of q and k come from, so that the pairs of a rotation lie beside each other."""
        part = name.split(".", 2)[-1]
        heads = {"attn.q": self.form.heads, "attn.k": self.form.model.kv_heads}.get(part)
        if heads is None or not self.turns:
            return None
        size = self.form.model.head_dim
        return np.arange(heads * size).reshape(heads, 2, size // 2).swapaxes(1, 2).ravel()


def block_scales(scale: Array, shape: tuple[int, ...], block: int) -> NDArray[np.float16]:
    """fp16 scales `[rows, blocks]`: ones where one fp32 scale stands beside the codes.

    Raises:
        InexpressibleError: they are larger than fp16 holds.
    """
    rows, blocks = shape[0], shape[1] // block
    if scale.ndim == 0:
        return np.ones((rows, blocks), np.float16)
    if scale.max() > np.finfo(np.float16).max:
        raise InexpressibleError(f"scales up to {scale.max():g} are more than fp16 holds; use type=f32")
    per_row = scale[:, None] if scale.ndim == 1 else scale
    return np.repeat(per_row, blocks // per_row.shape[1], 1).astype(np.float16)


def write_gguf(path: Path, form: DecoderForm, kind: str, name: str, tokenizer: str | None) -> None:
    """Writes the file.

    Args:
        kind: of quantized layers. tokenizer: as the packed file has it; None writes none.

    Raises:
        UserError: the package `gguf` is not installed.
    """
    gguf = library()
    model, file = form.model, gguf.GGUFWriter(str(path), "bitnet" if form.sub_norms else "llama")
    file.add_name(name)
    file.add_file_type(FILE_TYPES[kind])
    file.add_context_length(model.context)
    file.add_embedding_length(model.embed.embedding_dim)
    file.add_block_count(len(model.blocks))
    file.add_feed_forward_length(form.hidden)
    file.add_head_count(form.heads)
    file.add_head_count_kv(model.kv_heads)
    file.add_layer_norm_rms_eps(model.norm_eps)
    if model.head_dim * form.heads != model.embed.embedding_dim:
        file.add_key_length(model.head_dim)
        file.add_value_length(model.head_dim)
    file.add_rope_dimension_count(model.head_dim)
    file.add_rope_freq_base(model.rope_base)
    file.add_vocab_size(model.embed.num_embeddings)
    add_tokenizer(file, tokenizer, model.embed.num_embeddings, gguf.TokenType)
    file.add_tensor("token_embd.weight", array(model.embed.weight))
    for norm, gain in form.gains.items():
        file.add_tensor(f"{their_name(norm)}.weight", array(gain))
    writer = Writer(file, form, kind)
    for layer_name, layer in form.linears.items():
        writer.layer(layer_name, layer)
    if not form.tied:
        writer.layer("head", model.head)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def add_tokenizer(file: Any, text: str | None, rows: int, kinds: Any) -> None:
    """The tokenizer as keys: byte pairs over GPT-2's alphabet; none where there is none.

    Args:
        rows: of the embedding: llama.cpp refuses a file with fewer words.
    """
    if text is None:
        file.add_tokenizer_model("none")
        return
    words = vocabulary(text)
    listed, types = [], []
    for number, word in enumerate([*words.words, *[None] * (rows - len(words.words))]):
        listed.append(f"[PAD{number}]" if word is None else word)
        kind = kinds.UNUSED if word is None else kinds.NORMAL
        kind = kinds.CONTROL if number in words.special else kind
        types.append(kinds.USER_DEFINED if number in words.added else kind)
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("gpt-2")
    file.add_token_list(listed)
    file.add_token_types(types)
    file.add_token_merges([" ".join(pair) for pair in words.merges])
    file.add_eos_token_id(words.end)
    file.add_bos_token_id(words.end)
    file.add_pad_token_id(words.end)
    file.add_add_bos_token(False)
    file.add_add_eos_token(False)


def array(tensor: Any) -> Array:
    """As an fp32 array."""
    return np.asarray(tensor.detach().float().cpu().contiguous().numpy())


def library() -> Any:
    """The package `gguf`. Raises `UserError` saying how to get it."""
    try:
        import gguf
    except ImportError:
        raise UserError('GGUF files need the package gguf: pip install "bitexp[gguf]"') from None
    return gguf
