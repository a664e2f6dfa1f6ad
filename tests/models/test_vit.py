"""The ViT against two independent implementations, its sizes and its parameter names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from bitexp.models.vit import Block, ViT

DIGITS: dict[str, Any] = {
    "shape": (1, 8, 8),
    "classes": 10,
    "patch": 2,
    "dim": 64,
    "depth": 4,
    "heads": 4,
    "mlp_ratio": 2.0,
    "dropout": 0.0,
    "pool": "mean",
}
SMALL: dict[str, Any] = {**DIGITS, "dim": 16, "depth": 2, "heads": 2}


def copied(pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Randomizes ours (biases and norms too, which start at 0 and 1) and copies it into theirs."""
    with torch.no_grad():
        for ours, theirs in pairs:
            ours.add_(torch.randn_like(ours) * 0.1)
            theirs.copy_(ours.reshape(theirs.shape))
    return pairs


def assert_same_gradients(pairs: list[tuple[Tensor, Tensor]]) -> None:
    for ours, theirs in pairs:
        assert ours.grad is not None
        assert theirs.grad is not None
        assert_close(ours.grad, theirs.grad.reshape(ours.shape), rtol=1e-4, atol=1e-5)


def test_block_equals_torch_transformer_encoder_layer() -> None:
    torch.manual_seed(0)
    ours = Block(dim=24, heads=3, hidden=40, dropout=0.0)
    theirs = nn.TransformerEncoderLayer(
        24, 3, 40, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    attention = theirs.self_attn
    pairs = copied(
        [
            (ours.attn.qkv.weight, attention.in_proj_weight),
            (ours.attn.qkv.bias, attention.in_proj_bias),
            *zip(ours.attn.proj.parameters(), attention.out_proj.parameters(), strict=True),
            *zip(ours.attn.norm.parameters(), theirs.norm1.parameters(), strict=True),
            *zip(ours.mlp.norm.parameters(), theirs.norm2.parameters(), strict=True),
            *zip(ours.mlp.fc1.parameters(), theirs.linear1.parameters(), strict=True),
            *zip(ours.mlp.fc2.parameters(), theirs.linear2.parameters(), strict=True),
        ]
    )
    assert len(pairs) == len(list(ours.parameters())) == len(list(theirs.parameters()))
    x = torch.randn(3, 7, 24, requires_grad=True)
    z = x.detach().clone().requires_grad_()
    y, expected, grad = ours(x), theirs(z), torch.randn(3, 7, 24)
    assert_close(y, expected, rtol=1e-5, atol=1e-5)
    y.backward(grad)
    expected.backward(grad)
    assert_same_gradients([*pairs, (x, z)])


def test_whole_model_equals_torchvision() -> None:
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    ours = ViT(**{**SMALL, "shape": (3, 8, 8), "pool": "cls"})
    theirs = VisionTransformer(8, 2, 2, 2, 16, 32, num_classes=10)
    mapped = {"cls_token": "class_token", "pos_embed": "encoder.pos_embedding"}
    for kind in ("weight", "bias"):
        mapped[f"patch_embed.{kind}"] = f"conv_proj.{kind}"
        mapped[f"norm.{kind}"] = f"encoder.ln.{kind}"
        mapped[f"head.{kind}"] = f"heads.head.{kind}"
        for i in range(2):
            layer = f"encoder.layers.encoder_layer_{i}"
            mapped[f"blocks.{i}.attn.norm.{kind}"] = f"{layer}.ln_1.{kind}"
            mapped[f"blocks.{i}.attn.qkv.{kind}"] = f"{layer}.self_attention.in_proj_{kind}"
            mapped[f"blocks.{i}.attn.proj.{kind}"] = f"{layer}.self_attention.out_proj.{kind}"
            mapped[f"blocks.{i}.mlp.norm.{kind}"] = f"{layer}.ln_2.{kind}"
            mapped[f"blocks.{i}.mlp.fc1.{kind}"] = f"{layer}.mlp.0.{kind}"
            mapped[f"blocks.{i}.mlp.fc2.{kind}"] = f"{layer}.mlp.3.{kind}"
    named, others = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert set(named) == set(mapped)
    assert set(others) == set(mapped.values())
    pairs = copied([(named[a], others[b]) for a, b in mapped.items()])
    x, grad = torch.randn(4, 3, 8, 8), torch.randn(4, 10)
    y, expected = ours(x), theirs(x)
    assert_close(y, expected, rtol=1e-5, atol=1e-5)
    y.backward(grad)
    expected.backward(grad)
    assert_same_gradients(pairs)


def test_mean_pool_ignores_the_order_of_patches_but_for_their_positions() -> None:
    torch.manual_seed(0)
    model = ViT(**SMALL).eval()
    x = torch.randn(2, 1, 8, 8)
    moved = x.roll(2, dims=3)
    assert not torch.allclose(model(x), model(moved), atol=1e-3)
    nn.init.zeros_(model.pos_embed)
    assert_close(model(x), model(moved), rtol=1e-4, atol=1e-5)


def test_digits_model_has_the_published_size_and_names() -> None:
    model = ViT(**DIGITS)
    assert sum(p.numel() for p in model.parameters()) == 136_010
    block = [
        f"blocks.0.{name}.{kind}"
        for name in ("attn.norm", "attn.qkv", "attn.proj", "mlp.norm", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    ]
    names = [n for n in model.state_dict() if not n.startswith(("blocks.1", "blocks.2", "blocks.3"))]
    ends = [f"{name}.{kind}" for name in ("norm", "head") for kind in ("weight", "bias")]
    assert names == ["pos_embed", "patch_embed.weight", "patch_embed.bias", *block, *ends]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "heads=5 does not divide dim=64; choose one of 1, 2, 4, 8, 16, 32, 64"),
        ({"patch": 3}, "patch=3 does not divide the 8x8 image; choose one of 1, 2, 4, 8"),
        ({"shape": (1, 8, 12), "patch": 8}, "patch=8 does not divide the 8x12 image; .* 1, 2, 4$"),
        ({"dim": 10**12, "heads": 7}, "heads=7 does not divide dim=1000000000000"),
        ({"dim": 10**12, "depth": 0}, "depth=0 must be at least 1"),
        ({"dim": -64}, "dim=-64 must be at least 1"),
        ({"dim": 10**12, "mlp_ratio": 0.0}, "mlp_ratio=0.0 leaves no hidden units"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio=nan leaves no hidden units"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
        ({"pool": "max"}, "pool=max is not known.* Choose one of mean, cls"),
        ({"pool": "clf"}, "Did you mean 'cls'"),
        ({"classes": 0}, "classes=0 must be at least 1"),
        ({"shape": (1, 0, 8)}, "choose a data set of images"),
        ({"shape": (64,)}, "choose a data set of images"),
    ],
)
def test_bad_sizes_are_refused_before_anything_is_allocated(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViT(**{**DIGITS, **change})
