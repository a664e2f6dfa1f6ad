"""A GGUF file of llama.cpp: decoders of its architectures `llama` and `bitnet`, of codes or floats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitexp.common.errors import UserError
from bitexp.common.files import check_regular
from bitexp.deploy.frozen import freeze
from bitexp.deploy.sources.base import SOURCES, Source, Which, check_same, finite, sound, told
from bitexp.deploy.sources.gguf_tokenizer import tokenizer_json
from bitexp.deploy.sources.names import in_floats, renamed
from bitexp.deploy.sources.transformers import restore
from bitexp.kernels import Kernel, as_kernel
from bitexp.models import MODELS
from bitexp.quant import quantize
from bitexp.quant.presets import as_quantizer

MAGIC = b"GGUF"
FLOATS = ("F32", "F16", "BF16")
CODES = {"TQ2_0": 256, "TQ1_0": 256, "Q1_0": 128}
"""Types of codes, and how many share a scale."""

NAMES = {
    r"token_embd\.weight": "embed.weight",
    r"output\.(weight|scale)": r"head.\1",
    r"output_norm\.weight": "norm.weight",
    r"blk\.(\d+)\.attn_(norm|sub_norm)\.weight": r"blocks.\1.attn.\2.weight",
    r"blk\.(\d+)\.ffn_(norm|sub_norm)\.weight": r"blocks.\1.ffn.\2.weight",
    r"blk\.(\d+)\.attn_([qkv])\.(weight|scale)": r"blocks.\1.attn.\2.\3",
    r"blk\.(\d+)\.attn_output\.(weight|scale)": r"blocks.\1.attn.o.\2",
    r"blk\.(\d+)\.ffn_(gate|up|down)\.(weight|scale)": r"blocks.\1.ffn.\2.\3",
}
"""Names in llama.cpp, and in our decoder."""


@SOURCES.register("gguf")
class Gguf(Source):
    """See above. Codes have one scale for a layer; activations are int8 where weights are codes."""

    kind = "GGUF file"
    checked = False

    @classmethod
    def recognizes(cls, text: str) -> bool:
        path = Path(text).expanduser()
        return path.suffix == ".gguf" and path.is_file()

    @property
    def files(self) -> Sequence[Path]:
        return [self.path]

    @cached_property
    def reader(self) -> Any:
        """The file, mapped."""
        try:
            import gguf
        except ImportError:
            raise UserError('GGUF files need the package gguf: pip install "bitexp[gguf]"') from None
        with told(self.text):
            check_regular(self.path, self.path.stat())
            with self.path.open("rb") as file:
                if file.read(4) != MAGIC:
                    raise ValueError("it is no GGUF file")
            return gguf.GGUFReader(self.path)

    def value(self, key: str, default: Any = None) -> Any:
        """The value of a key; `A.` is the architecture. Raises `ValueError` where it is missing."""
        field = self.reader.get_field(key.replace("A.", f"{self.architecture}.", 1))
        if field is None:
            if default is None:
                raise ValueError(f"it has no key {key}")
            return default
        return field.contents()

    @property
    def architecture(self) -> str:
        """llama or bitnet. Raises `ValueError` for others."""
        field = self.reader.get_field("general.architecture")
        found = None if field is None else str(field.contents())
        if found not in ("llama", "bitnet"):
            raise ValueError(f"its architecture is {found}; the decoder computes llama and bitnet")
        return found

    @cached_property
    def entries(self) -> Mapping[str, Any]:
        """The tensors by our names. Raises `ValueError` for one that the decoder has no place for."""
        found = {}
        for entry in self.reader.tensors:
            if (ours := renamed(NAMES, entry.name)) is None:
                raise ValueError(f"our decoder has no place for its tensor {entry.name}")
            found[ours] = entry
        return found

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """The arguments of our decoder that computes the same."""
        with told(self.text):
            dim, heads = whole(self.value("A.embedding_length")), whole(self.value("A.attention.head_count"))
            hidden = whole(self.value("A.feed_forward_length"))
            ratio = hidden / dim
            if round(dim * ratio) != hidden:
                raise ValueError(f"its feed_forward_length {hidden} is no multiple of {dim} in floats")
            if whole(self.value("A.rope.dimension_count", dim // heads)) != dim // heads:
                raise ValueError("its heads are of another size than the width over their number")
            self.check_rotations()
            return {
                "vocabulary": int(self.entries["embed.weight"].shape[1]),
                "context": whole(self.value("A.context_length")),
                "dim": dim,
                "depth": whole(self.value("A.block_count")),
                "heads": heads,
                "kv_heads": whole(self.value("A.attention.head_count_kv", heads)),
                "mlp_ratio": ratio,
                "activation": "silu",
                "sub_norm": self.architecture == "bitnet",
                "tied": "head.weight" not in self.entries,
                "rope_base": float(self.value("A.rope.freq_base", 10000.0)),
                "norm_eps": float(f"{self.value('A.attention.layer_norm_rms_epsilon'):.7g}"),
                "init_std": None,
                "dropout": 0.0,
            }

    def check_rotations(self) -> None:
        """Raises `ValueError` for rotary positions that are scaled; `linear` without a factor are not."""
        kind = self.value("A.rope.scaling.type", "linear")
        factor = self.value("A.rope.scaling.factor", self.value("A.rope.scale_linear", 1.0))
        if kind not in ("none", "linear") or (kind == "linear" and factor not in (0, 1)):
            raise ValueError(
                f"its rotary positions are scaled ({kind}, {factor:g}), and the decoder computes the default"
            )

    @property
    def ternary(self) -> list[str]:
        """The linear layers whose weights are codes, by our names."""
        kinds = {name.removesuffix(".weight"): e.tensor_type.name for name, e in self.entries.items()}
        return sorted(name for name, kind in kinds.items() if kind in CODES)

    def describe(self) -> dict[str, Any]:
        with told(self.text):
            return {
                "kind": self.kind,
                "path": self.text,
                "identity": self.identity,
                "model": "decoder",
                "model_arguments": self.arguments,
                "quantizer": self.quantizer,
            }

    @property
    def quantizer(self) -> dict[str, Any]:
        """What computes with such codes: BitNet b1.58's, with the weights that there are."""
        if not self.ternary:
            return as_quantizer("full").to_json()
        binary = all(self.entries[f"{name}.weight"].tensor_type.name == "Q1_0" for name in self.ternary)
        found = as_quantizer("b158").to_json()
        if binary:
            found |= {"name": "binary", "weights": {**found["weights"], "name": "binary"}}
        return found

    @cached_property
    def tokenizer(self) -> str | None:
        with told(self.text):
            if self.value("tokenizer.ggml.model", "none") != "gpt2":
                return None
            words = self.value("tokenizer.ggml.tokens")
            kinds = self.value("tokenizer.ggml.token_type", [1] * len(words))
            split, merges = self.value("tokenizer.ggml.pre", "gpt-2"), self.value("tokenizer.ggml.merges")
            return tokenizer_json(split, words, kinds, merges)

    def stored(self, name: str) -> Tensor:
        """Floats in the type that they are stored in, in our order of rows.

        Raises:
            ValueError: they are not finite, or the file has not what its sizes say.
        """
        self.check()
        if f"{name.removesuffix('.weight')}.scale" in self.entries:  # codes as floats
            tensor = self.floats(name) * self.floats(f"{name.removesuffix('.weight')}.scale").reshape(())
        elif self.entries[name].tensor_type.name == "BF16":
            content = torch.from_numpy(np.array(self.entries[name].data)).view(torch.bfloat16)
            tensor = self.turned(name, content.reshape(*map(int, self.entries[name].shape[::-1])))
        elif self.entries[name].tensor_type.name == "F16":
            tensor = self.turned(name, torch.from_numpy(np.array(self.entries[name].data)))
        else:
            tensor = self.floats(name)
        return finite(name, tensor)

    def check(self) -> None:
        """Raises `ValueError` where tensors are missing or have other shapes than the decoder's."""
        if self.checked:
            return
        with torch.device("meta"):
            blank = MODELS.get("decoder")(**self.arguments)
        expected = {name: tuple(tensor.shape) for name, tensor in blank.state_dict().items()}
        if self.arguments["tied"]:
            del expected["head.weight"]
        names = [name for name in self.entries if not name.endswith(".scale")]
        check_same(expected, {name: tuple(map(int, self.entries[name].shape[::-1])) for name in names})
        self.checked = True

    def floats(self, name: str) -> Tensor:
        """A tensor in fp32, in our order of rows. Raises `ValueError` for other types."""
        import gguf

        entry = self.entries[name]
        kind = entry.tensor_type.name
        if kind not in FLOATS and kind not in CODES:
            raise ValueError(f"{name} is of the type {kind}; known are {', '.join((*FLOATS, *CODES))}")
        values = gguf.quants.dequantize(entry.data, entry.tensor_type) if kind != "Q1_0" else bits(entry.data)
        tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32).reshape(*entry.shape[::-1]).copy())
        return self.turned(name, tensor)

    def turned(self, name: str, rows: Tensor) -> Tensor:
        """Rows of q and k with the pairs of a rotation half a head apart; `llama` has them side by side."""
        heads = {"attn.q": "heads", "attn.k": "kv_heads"}.get(name.removesuffix(".weight").split(".", 2)[-1])
        if heads is None or self.architecture == "bitnet":
            return rows
        size = self.arguments["dim"] // self.arguments["heads"]
        return rows.reshape(self.arguments[heads], size // 2, 2, -1).transpose(1, 2).reshape(rows.shape)

    def codes(self, layer: str) -> tuple[Tensor, Tensor]:
        """The codes of a layer, and what multiplies them, a scalar.

        Raises:
            ValueError: they have several scales, or the file has not what its sizes say.
        """
        self.check()
        weight = self.floats(f"{layer}.weight")
        largest = weight.abs().amax()
        scale = torch.where(largest == 0, torch.ones_like(largest), largest)
        codes = (weight / scale).round()
        if not torch.equal(codes * scale, weight):
            raise ValueError(f"{layer} has several scales, and only one for a layer can be imported")
        if f"{layer}.scale" in self.entries:
            scale = scale * self.floats(f"{layer}.scale").reshape(())
        return codes.to(torch.int8), scale

    def weights(self, which: Which = "best", model: str | None = None) -> dict[str, Tensor]:
        with told(self.text):
            self.check()
            state = {}
            for name in self.entries:
                if (layer := name.removesuffix(".weight")) in self.ternary:
                    codes, scale = self.codes(layer)
                    state[name] = codes.float() * scale
                elif not name.endswith(".scale"):
                    state[name] = self.stored(name)
            state = sound(state)
            if self.arguments["tied"]:
                state["head.weight"] = state["embed.weight"]
            return state

    def model(self, which: Which = "best", kernel: Kernel | str = "auto") -> nn.Module:
        kernel, state = as_kernel(kernel), self.weights(which)
        model: nn.Module = MODELS.get("decoder")(**self.arguments)
        model.load_state_dict(state)
        if self.ternary:
            quantize(model, self.quantizer, self.ternary, in_floats(self.ternary))
            for name, layer in freeze(model, kernel=kernel).items():
                restore(layer, *self.codes(name))
        return model.eval()


def bits(blocks: np.ndarray) -> np.ndarray:
    """Q1_0: blocks of 18 bytes, an fp16 scale and 128 bits, the lowest first."""
    blocks = blocks.reshape(-1, 18)
    scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
    signs = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").astype(np.float32) * 2 - 1
    return signs * scales


def whole(value: Any) -> int:
    """A size. Raises `ValueError` where it is none."""
    if isinstance(value, bool) or int(value) != value or value < 1:
        raise ValueError(f"{value!r} is no size")
    return int(value)
