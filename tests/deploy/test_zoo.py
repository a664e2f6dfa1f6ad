"""Networks that others wrote: converted, proven, trained, frozen, packed and loaded, with the same bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitexp.deploy.description import Description
from bitexp.deploy.frozen import FrozenLayer, freeze
from bitexp.deploy.packed_file import load_packed, save_packed
from bitexp.deploy.rehearsal import rehearse
from bitexp.kernels import choose_kernel
from bitexp.models import MODELS
from bitexp.quant import quantize, set_backend
from bitexp.quant.layers import quantized_layers

pytestmark = pytest.mark.slow

KERNEL = choose_kernel("auto", "cpu")[0]
WORDS = torch.arange(3, 23).reshape(2, 10)
QUANTIZER = "ternary_mean"


def images(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def answer(output: Any) -> Tensor:
    """The tensor in what a model gives."""
    if isinstance(output, Tensor):
        return output
    tensor: Tensor = output.logits if hasattr(output, "logits") else output.last_hidden_state
    return tensor


def check(description: Description, example: Any, path: Path) -> None:
    """The whole way of a network, from its builder to the loaded file."""

    def forward(model: nn.Module) -> Tensor:
        return answer(model(**example) if isinstance(example, dict) else model(example))

    torch.manual_seed(0)
    model = MODELS.get(description.model)(**description.model_arguments)
    body = quantize(model, QUANTIZER, exclude=description.exclude, example=example).body
    set_backend(model, KERNEL.backend)
    rehearse(model, forward)
    before = {name: layer.weight.detach().clone() for name, layer in quantized_layers(model).items()}
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        (forward(model.train()) - 1).square().mean().backward()
        optimizer.step()
    assert not any(torch.equal(layer.weight, before[n]) for n, layer in quantized_layers(model).items())
    model.eval()
    with torch.no_grad():
        expected = forward(model)
        assert expected.isfinite().all()
        freeze(model, kernel=KERNEL)
        assert torch.equal(forward(model), expected)
        save_packed(path, model, description, body)
        loaded, _ = load_packed(path, KERNEL)
        assert torch.equal(forward(loaded), expected)
    frozen = {name for name, module in loaded.named_modules() if isinstance(module, FrozenLayer)}
    assert frozen
    assert frozen <= set(body)


TORCHVISION: dict[str, tuple[int, Sequence[str]]] = {
    "alexnet": (64, ()),
    "convnext_tiny": (32, ["*.layer_scale"]),
    "densenet121": (32, ()),
    "efficientnet_b0": (32, ()),
    "efficientnet_v2_s": (32, ()),
    "googlenet": (32, ()),
    "inception_v3": (80, ()),
    "maxvit_t": (224, ["*.relative_position_bias_table"]),
    "mnasnet0_5": (32, ()),
    "mobilenet_v2": (32, ()),
    "mobilenet_v3_small": (32, ()),
    "regnet_y_400mf": (32, ()),
    "resnet18": (32, ()),
    "resnext50_32x4d": (32, ()),
    "shufflenet_v2_x0_5": (32, ()),
    "squeezenet1_0": (64, ()),
    "swin_t": (32, ["*.attn"]),
    "swin_v2_t": (32, ["*.attn"]),
    "vgg11": (32, ()),
    "vit_b_32": (32, ["class_token", "*.pos_embedding", "*.self_attention"]),
}
"""One of each family: the pixels of a side, and what stays in full precision."""


@pytest.mark.parametrize("arch", TORCHVISION)
def test_classifiers_of_torchvision(arch: str, tmp_path: Path) -> None:
    size, kept = TORCHVISION[arch]
    arguments = {"shape": (3, size, size), "classes": 5, "arch": arch, "stem": "imagenet"}
    description = Description("torchvision", arguments, QUANTIZER, exclude=list(kept))
    check(description, images(size), tmp_path / "packed.safetensors")


def test_every_family_of_torchvision_is_there() -> None:
    models = pytest.importorskip("torchvision.models")
    classifiers = models.list_models(module=models)
    families = {models.get_model_builder(name).__module__ for name in classifiers}
    assert {models.get_model_builder(name).__module__ for name in TORCHVISION} == families


TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
IMAGES = {**TEXT, "image_size": 32, "patch_size": 8}
del IMAGES["vocab_size"]
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
WHISPER = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_mel_bins": 8,
    "max_source_positions": 16, "max_target_positions": 16, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip

TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any], dict[str, Tensor], Sequence[str]]] = {
    "t5": (
        "T5ForConditionalGeneration", "T5Config", {**T5, "decoder_start_token_id": 0},
        {"input_ids": WORDS, "decoder_input_ids": WORDS},
        ["shared", "*.embed_tokens", "*.relative_attention_bias"],
    ),
    "vit": (
        "ViTForImageClassification", "ViTConfig", {**IMAGES, "num_labels": 5}, {"pixel_values": images(32)},
        ["*.cls_token", "*.position_embeddings"],
    ),
    "bert": ("BertForMaskedLM", "BertConfig", TEXT, {"input_ids": WORDS}, ["*_embeddings"]),
    "mamba": (
        "MambaForCausalLM", "MambaConfig",
        {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, {"input_ids": WORDS},
        ["backbone.embeddings", "*.A_log", "*.conv1d", "*.dt_proj"],
    ),
    "clip": (
        "CLIPVisionModel", "CLIPVisionConfig", IMAGES, {"pixel_values": images(32)}, ["*position_embedding"],
    ),
    "whisper": (
        "WhisperForConditionalGeneration", "WhisperConfig", WHISPER,
        {"input_features": torch.randn(2, 8, 32), "decoder_input_ids": WORDS},
        ["*.encoder.conv1", "*.encoder.conv2", "*.embed_positions", "*.embed_tokens"],
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", TEXT, {"input_ids": WORDS}, ["*.embed_tokens"]),
    "mixtral": (
        "MixtralForCausalLM", "MixtralConfig", {**TEXT, "num_key_value_heads": 2, "num_local_experts": 4},
        {"input_ids": WORDS}, ["*.embed_tokens", "*.mlp.gate", "*.mlp.experts"],
    ),
}  # fmt: skip
"""Model, config and its sizes, a batch, and what stays in full precision."""


def transformers_model(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    kind, config, sizes, _, _ = TRANSFORMERS[name]
    model: nn.Module = getattr(transformers, kind)(getattr(transformers, config)(**sizes))
    return model


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 48, dropout=0.0, batch_first=True), 2)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], nn.Module]], str]:
    """Registers a builder of networks for a test, and gives its name."""

    def register(build: Callable[[], nn.Module]) -> str:
        monkeypatch.setattr(MODELS, "get", lambda name: lambda **_: build())
        return "of the test"

    return register


@pytest.mark.filterwarnings("ignore")  # of transformers, about packages that it would like to have
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_architectures_of_transformers(name: str, tmp_path: Path, registered: Callable[..., str]) -> None:
    *_, example, kept = TRANSFORMERS[name]
    builder = registered(lambda: transformers_model(name))
    check(Description(builder, {}, QUANTIZER, exclude=list(kept)), example, tmp_path / "packed.safetensors")


def test_the_encoder_of_torch(tmp_path: Path, registered: Callable[..., str]) -> None:
    description = Description(registered(encoder), {}, QUANTIZER, exclude=["*.self_attn"])
    check(description, torch.randn(2, 5, 32), tmp_path / "packed.safetensors")


REFUSED = {
    "mixtral": (["*.embed_tokens", "*.mlp.gate"], r"^model\.layers\.0\.mlp\.experts\.gate_up_proj, "),
    "mamba": (
        ["backbone.embeddings", "*.A_log", "*.conv1d"],
        r"^backbone\.layers\.0\.mixer\.dt_proj, backbone\.layers\.1\.mixer\.dt_proj: the model reads",
    ),
}
"""Weights that no layer multiplies: fused experts are no layers, and Mamba reads those of its time steps."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_what_no_layer_multiplies_is_refused_by_name(name: str) -> None:
    kept, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        quantize(transformers_model(name), QUANTIZER, exclude=kept, example=TRANSFORMERS[name][3])
