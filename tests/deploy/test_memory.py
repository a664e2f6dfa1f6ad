"""Models are imported and loaded without their weights as floats: what that takes of memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bitexp.common.files import write_json
from bitexp.deploy import import_model
from bitexp.deploy.packed_file import load_packed

DIM, HIDDEN, LAYERS, WORDS = 1024, 4096, 2, 4000
STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def write_bitnet(folder: Path, dim: int, hidden: int, layers: int, words: int, heads: int, kv: int) -> int:
    """A folder as transformers has BitNet, with random codes and an embedding in bf16; its weights in all."""
    tensors: dict[str, Any] = {
        "model.embed_tokens.weight": torch.randn(words, dim, dtype=torch.bfloat16),
        "model.norm.weight": torch.ones(dim, dtype=torch.bfloat16),
    }
    narrow = dim // heads * kv
    shapes = {"self_attn.q": (dim, dim), "self_attn.k": (narrow, dim), "self_attn.v": (narrow, dim)}
    shapes |= {"self_attn.o": (dim, dim), "mlp.gate": (hidden, dim), "mlp.up": (hidden, dim)}
    shapes |= {"mlp.down": (dim, hidden)}
    norms = {"input_layernorm": dim, "post_attention_layernorm": dim}
    norms |= {"self_attn.attn_sub_norm": dim, "mlp.ffn_sub_norm": hidden}
    digits = torch.tensor([a | b << 2 | c << 4 | d << 6 for a in (0, 1, 2) for b in (0, 1, 2)
                           for c in (0, 1, 2) for d in (0, 1, 2)], dtype=torch.uint8)  # fmt: skip
    for number in range(layers):
        place = f"model.layers.{number}"
        for name, (out, inputs) in shapes.items():
            chosen = torch.randint(len(digits), (out // 4, inputs), dtype=torch.uint8)
            tensors[f"{place}.{name}_proj.weight"] = digits[chosen.int()]
            tensors[f"{place}.{name}_proj.weight_scale"] = torch.tensor([1.5], dtype=torch.bfloat16)
        for name, width in norms.items():
            tensors[f"{place}.{name}.weight"] = torch.ones(width, dtype=torch.bfloat16)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {
        "model_type": "bitnet", "vocab_size": words, "hidden_size": dim, "intermediate_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
        "hidden_act": "relu2", "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
        "tie_word_embeddings": True,
        "quantization_config": {
            "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"
        },
    }  # fmt: skip
    write_json(folder / "config.json", config)
    return words * dim + layers * sum(out * inputs for out, inputs in shapes.values())


def megabytes(key: str) -> float:
    """A figure of /proc/self/status."""
    (found,) = re.findall(rf"^{key}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    return int(found) / 1024


def peak(call: Callable[[], Any]) -> tuple[float, Any]:
    """The most memory in MB that a call takes beyond what there was, and its result."""
    REFERENCES.write_text("5")  # the peak is now
    before = megabytes("VmRSS")
    result = call()
    return megabytes("VmHWM") - before, result


@pytest.mark.skipif(not REFERENCES.exists(), reason="the kernel does not say how much memory was taken")
def test_an_import_needs_a_fraction_of_its_floats(tmp_path: Path) -> None:
    weights = write_bitnet(tmp_path / "bitnet", DIM, HIDDEN, LAYERS, WORDS, 8, 2)
    out = tmp_path / "packed.safetensors"
    taken, code = peak(lambda: import_model.main([str(tmp_path / "bitnet"), "--out", str(out)]))
    floats = 4 * weights / 2**20
    assert code == 0
    assert floats > 120
    assert taken < 0.7 * floats  # of which the mapped files are a third
    taken, (model, _) = peak(lambda: load_packed(out, "reference"))
    assert taken < 0.7 * floats  # int8 codes, their packed form, the embedding in fp32
    assert model.head.weight is model.embed.weight
    assert model.embed.weight.dtype == torch.float32
