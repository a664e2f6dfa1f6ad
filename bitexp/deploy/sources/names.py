"""What tensors of other packages are called in our models, and in what shape they are there."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

LAYER = r"encoder\.layers\.encoder_layer_(\d+)"

VIT = {
    r"conv_proj\.weight": "patch_embed.weight",
    r"conv_proj\.bias": "patch_embed.bias",
    r"class_token": "cls_token",
    r"encoder\.pos_embedding": "pos_embed",
    LAYER + r"\.ln_1\.(weight|bias)": r"blocks.\1.attn.norm.\2",
    LAYER + r"\.self_attention\.in_proj_(weight|bias)": r"blocks.\1.attn.qkv.\2",
    LAYER + r"\.self_attention\.out_proj\.(weight|bias)": r"blocks.\1.attn.proj.\2",
    LAYER + r"\.ln_2\.(weight|bias)": r"blocks.\1.mlp.norm.\2",
    LAYER + r"\.mlp\.(?:0|linear_1)\.(weight|bias)": r"blocks.\1.mlp.fc1.\2",
    LAYER + r"\.mlp\.(?:3|linear_2)\.(weight|bias)": r"blocks.\1.mlp.fc2.\2",
    r"encoder\.ln\.(weight|bias)": r"norm.\1",
    r"heads\.head\.(weight|bias)": r"head.\1",
}
"""Names in torchvision's ViT, and in ours with a class token (`pool: cls`)."""

DECODER = {
    r"model\.embed_tokens\.weight": "embed.weight",
    r"lm_head\.weight": "head.weight",
    r"model\.norm\.weight": "norm.weight",
    r"model\.layers\.(\d+)\.self_attn\.([qkvo])_proj\.(\w+)": r"blocks.\1.attn.\2.\3",
    r"model\.layers\.(\d+)\.self_attn\.([qk])_norm\.weight": r"blocks.\1.attn.\2_norm.weight",
    r"model\.layers\.(\d+)\.self_attn\.attn_sub_norm\.weight": r"blocks.\1.attn.sub_norm.weight",
    r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj\.(\w+)": r"blocks.\1.ffn.\2.\3",
    r"model\.layers\.(\d+)\.mlp\.ffn_sub_norm\.weight": r"blocks.\1.ffn.sub_norm.weight",
    r"model\.layers\.(\d+)\.input_layernorm\.weight": r"blocks.\1.attn.norm.weight",
    r"model\.layers\.(\d+)\.post_attention_layernorm\.weight": r"blocks.\1.ffn.norm.weight",
}
"""Names in transformers' models of the LLaMA family, and in our decoder."""


def in_floats(ternary: Collection[str]) -> list[str]:
    """What of our decoder is no quantized layer, where these are ternary: the head may be one."""
    return ["embed"] if "head" in ternary else ["embed", "head"]


def renamed(table: Mapping[str, str], name: str) -> str | None:
    """The name in a model of ours, or None where the table has none."""
    for theirs, ours in table.items():
        if match := re.fullmatch(theirs, name):
            return match.expand(ours)
    return None


def vit_of_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of torchvision's ViT as our `vit` has it. Raises `ValueError` where it is none."""
    found = {}
    for name, tensor in state.items():
        if (ours := renamed(VIT, name)) is None:
            raise ValueError(f"{name} has no place in model=vit")
        if ours == "patch_embed.weight":
            tensor = tensor.flatten(1)
        elif ours in ("cls_token", "pos_embed"):
            tensor = tensor[0, 0] if ours == "cls_token" else tensor[0]
        found[ours] = tensor
    return found
