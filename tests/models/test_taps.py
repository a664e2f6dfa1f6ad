"""What is seen inside of networks while they run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitexp.models import build_model
from bitexp.models.taps import Watch
from bitexp.quant import quantize

DECODER: dict[str, Any] = {"vocabulary": 11, "context": 8, "dim": 16, "depth": 2, "heads": 4, "kv_heads": 2}
VIT: dict[str, Any] = {"shape": (1, 8, 8), "classes": 3, "patch": 4, "dim": 16, "depth": 2, "heads": 2}
TOKENS = torch.arange(8).expand(2, 8)
IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def seen_in(model: nn.Module, inputs: Tensor, *parts: str) -> dict[str, list[Tensor]]:
    with (watch := Watch(model, parts)):
        model(inputs)
    return watch.take()


def test_the_decoder_shows_its_layers_and_projections() -> None:
    model = build_model("decoder", **DECODER)
    expected = model(TOKENS)
    seen = seen_in(model, TOKENS, "hidden", "query", "key", "value")
    widths = {part: [tuple(states.shape) for states in seen[part]] for part in seen}
    narrow = [(2, 8, 8)] * 2
    assert widths == {"hidden": [(2, 8, 16)] * 2, "query": [(2, 8, 16)] * 2, "key": narrow, "value": narrow}
    torch.testing.assert_close(model.head(model.norm(seen["hidden"][-1])), expected, rtol=0, atol=0)
    first = model.blocks[0].attn
    assert torch.equal(seen["key"][0], first.k(first.norm(model.embed(TOKENS))))


def test_a_third_of_what_one_module_computes() -> None:
    model = build_model("vit", **VIT)
    seen = seen_in(model, IMAGES, "hidden", "query", "key", "value")
    attn = model.blocks[0].attn
    x = model.patch_embed(model.patches(IMAGES)) + model.pos_embed
    q, k, v = attn.qkv(attn.norm(x)).unflatten(-1, (3, 2, 8)).unbind(2)
    for part, states in (("query", q), ("key", k), ("value", v)):
        assert torch.equal(seen[part][0], states.flatten(2))
    assert torch.equal(model.head(model.norm(seen["hidden"][1]).mean(1)), model(IMAGES))


@pytest.mark.parametrize(
    ("name", "arguments", "shapes"),
    [
        ("mlp", {"hidden": [6, 5]}, [(2, 6), (2, 5)]),
        ("cnn", {"widths": [4, 6, 8], "pool": [1, 2, 1]}, [(2, 6, 4, 4), (2, 8, 4, 4)]),
        ("resnet18", {}, [(2, 64, 8, 8), (2, 128, 4, 4), (2, 256, 2, 2), (2, 512, 1, 1)]),
    ],
)
def test_hidden_states_of_other_networks(name: str, arguments: dict[str, Any], shapes: list[Any]) -> None:
    model = build_model(name, shape=(1, 8, 8), classes=3, **arguments).eval()
    assert [tuple(states.shape) for states in seen_in(model, IMAGES, "hidden")["hidden"]] == shapes


def test_a_quantized_network_computes_the_same_while_it_is_watched() -> None:
    model = build_model("decoder", **DECODER)
    quantize(model, "ternary_mean", exclude=["head", "embed"])
    expected = model(TOKENS)
    watch = Watch(model, ["query"])
    for _ in range(2):
        with watch:
            assert torch.equal(model(TOKENS), expected)
        (states,) = {states.shape for states in watch.take()["query"]}
        assert states == (2, 8, 16)
    model(TOKENS)
    assert watch.take() == {"query": [None, None]}  # nothing is kept, and nobody looks any more
    assert not any(module._forward_hooks for module in model.modules())


def test_a_network_that_says_nothing_cannot_be_watched() -> None:
    with pytest.raises(ValueError, match="MLP does not say where its query states are"):
        Watch(build_model("mlp", shape=(1, 8, 8), classes=3), ["query"])
    with pytest.raises(ValueError, match="Linear does not say where its hidden states are"):
        Watch(nn.Linear(2, 2), ["hidden"])
