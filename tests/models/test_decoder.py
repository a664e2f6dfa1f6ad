"""The decoder against three of transformers' models, its cache, its rotations, and what quantizes in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bitexp.deploy.description import Description
from bitexp.deploy.frozen import FrozenLayer, freeze
from bitexp.deploy.packed_file import load_packed, read_packed, save_packed, sizes
from bitexp.kernels import KERNELS
from bitexp.models.decoder import Cache, Decoder, rotate, rotation
from bitexp.quant.convert import quantize
from bitexp.quant.layers import BitLinear
from tests.support.quantizers import MakeQuantizer

TINY: dict[str, Any] = {
    "vocabulary": 37,
    "context": 40,
    "dim": 24,
    "depth": 2,
    "heads": 4,
    "kv_heads": 2,
    "mlp_ratio": 1.5,
    "activation": "silu",
    "sub_norm": False,
    "tied": False,
    "rope_base": 10000.0,
    "norm_eps": 1e-5,
    "init_std": None,
    "dropout": 0.0,
}
BITNET: dict[str, Any] = {"sub_norm": True, "activation": "relu2"}
SIZES: list[dict[str, Any]] = [
    {},
    {"kv_heads": 4, "rope_base": 500.0},
    {"dim": 8, "heads": 1, "kv_heads": 1, "mlp_ratio": 1.7, "depth": 1, "norm_eps": 1e-3},
    {"vocabulary": 64, "dim": 48, "heads": 6, "kv_heads": 1, "mlp_ratio": 1.2, "depth": 3},
]
THEIR_NAMES = {
    "blocks.": "model.layers.",
    "attn.norm.": "input_layernorm.",
    "ffn.norm.": "post_attention_layernorm.",
    "attn.sub_norm.": "self_attn.attn_sub_norm.",
    "ffn.sub_norm.": "mlp.ffn_sub_norm.",
    **{f"attn.{part}.": f"self_attn.{part}_proj." for part in "qkvo"},
    **{f"ffn.{part}.": f"mlp.{part}_proj." for part in ("gate", "up", "down")},
}
TOP = {"embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
TOP["head.weight"] = "lm_head.weight"
TOLERANCE = 2e-5
"""Of the largest entry: fp32 rounds by 6e-8, and through a few layers and back that grows to 5e-6. An eps
that is off by a tenth shows as 4e-4, a rotary base that is off by a thousandth as 3e-4."""


def build(seed: int = 0, **changes: Any) -> Decoder:
    """A small decoder whose every parameter is random, norms (which begin at 1) too."""
    torch.manual_seed(seed)
    model = Decoder(**{**TINY, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def draw(model: Decoder, length: int, batch: int = 3) -> Tensor:
    return torch.randint(model.embed.num_embeddings, (batch, length))


def their_name(name: str) -> str:
    if name in TOP:
        return TOP[name]
    for ours, theirs in THEIR_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def oracle(kind: str, ours: Decoder, changes: dict[str, Any], **more: Any) -> nn.Module:
    """transformers' model of that kind with our weights; attention written out, not torch's fused one."""
    import transformers

    have = {**TINY, **changes}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=have["vocabulary"],
        hidden_size=have["dim"],
        intermediate_size=ours.blocks[0].ffn.gate.out_features,
        num_hidden_layers=have["depth"],
        num_attention_heads=have["heads"],
        num_key_value_heads=have["kv_heads"],
        hidden_act=have["activation"],
        max_position_embeddings=have["context"],
        rms_norm_eps=have["norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": have["rope_base"]},
        tie_word_embeddings=have["tied"],
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
        **more,
    )
    theirs: nn.Module = getattr(transformers, f"{kind}ForCausalLM")(config)
    names = {their_name(name): parameter.detach().clone() for name, parameter in ours.named_parameters()}
    assert set(names) == {name for name, _ in theirs.named_parameters()}
    theirs.load_state_dict(names, strict=False)
    return theirs


def difference(ours: Tensor | None, theirs: Tensor | None) -> float:
    """The largest difference over the largest entry."""
    assert ours is not None
    assert theirs is not None
    assert theirs.abs().max() > 0
    return float(((ours - theirs).abs().max() / theirs.abs().max()).detach())


def step_differences(ours: Decoder, theirs: Any, tokens: Tensor) -> dict[str, float]:
    """How far logits, loss and the gradients of a training step are from theirs."""
    logits = ours(tokens)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    expected = theirs(input_ids=tokens, labels=tokens, use_cache=False)
    expected.loss.backward()
    found = {"logits": difference(logits, expected.logits), "loss": difference(loss, expected.loss)}
    grads = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        found[name] = difference(parameter.grad, grads[their_name(name)])
    return found


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["Llama", "Mistral", "BitNet"])
def test_logits_loss_and_every_gradient_equal_those_of_transformers(
    kind: str, sizes: dict[str, Any], tied: bool
) -> None:
    length = 13 if tied else 33
    changes = {**sizes, **(BITNET if kind == "BitNet" else {}), "tied": tied}
    ours = build(**changes)
    more = {"sliding_window": length} if kind == "Mistral" else {}
    found = step_differences(ours, oracle(kind, ours, changes, **more), draw(ours, length))
    assert max(found.values()) < TOLERANCE, found


def test_b158_on_the_decoder_equals_bitnet_with_autobitlinear(
    make_quantizer: MakeQuantizer,
) -> None:
    """The two round in another order before they round to codes, so that now and then a code is another.

    Such a code is one step of 127 at one token; most models have none, and are as equal as in fp32.
    """
    from transformers.integrations.bitnet import AutoBitLinear

    worst = []
    for seed in range(5):
        ours = build(seed, **BITNET)
        theirs = oracle("BitNet", ours, BITNET)
        quantize(ours, make_quantizer("b158"), ["*"], ["embed", "head"])
        for name, layer in list(theirs.named_modules()):
            if isinstance(layer, nn.Linear) and name != "lm_head":
                twin = AutoBitLinear(layer.in_features, layer.out_features, bias=False, online_quant=True)
                twin.weight = layer.weight
                theirs.set_submodule(name, twin)
        with torch.compiler.set_stance("force_eager"):
            found = step_differences(ours, theirs, draw(ours, 9, batch=1))
        assert len(found) == 2 + len(list(ours.parameters()))
        worst.append(max(found.values()))
    assert sorted(worst)[2] < TOLERANCE, worst
    assert max(worst) < 0.1, worst


def quantized(make_quantizer: MakeQuantizer, preset: str, norm: str, **changes: Any) -> Decoder:
    """A small decoder in a precision, its embedding and head kept."""
    model = build(**changes)
    if preset != "full":
        quantize(model, make_quantizer(preset, norm=norm), ["*"], ["embed", "head"])
    return model.eval()


PRECISIONS = [("full", ""), ("ternary_mean", "layer"), ("ternary_mean", "rms"), ("b158", "none")]


@pytest.mark.parametrize(("preset", "norm"), PRECISIONS)
@pytest.mark.parametrize("kv_heads", [1, 4])
@given(data=st.data())
def test_logits_with_a_cache_equal_those_of_one_pass_whatever_the_pieces(
    make_quantizer: MakeQuantizer, kv_heads: int, preset: str, norm: str, data: st.DataObject
) -> None:
    model = quantized(make_quantizer, preset, norm, kv_heads=kv_heads, context=9)
    model.double()  # what is not quantized then differs by so little that no code does
    tokens = draw(model, data.draw(st.integers(1, 9)), batch=2)
    cache, parts, left = Cache(model, batch=2), [], tokens
    while left.shape[1]:
        size = data.draw(st.integers(1, left.shape[1]))
        parts.append(model(left[:, :size], cache))
        left = left[:, size:]
    assert cache.length == tokens.shape[1]
    assert difference(torch.cat(parts, 1), model(tokens)) < 1e-12


def test_a_cache_begins_small_and_grows_up_to_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitexp.models.decoder.ROOM", 4)
    model = build(context=21).double()
    tokens, cache, rooms, parts = draw(model, 20, batch=1), Cache(model), [], []
    for start, end in ((0, 3), (3, 4), (4, 7), (7, 20)):
        with torch.inference_mode(end == 7):
            parts.append(model(tokens[:, start:end], cache))
        rooms.append(cache.store.shape[-2])
    assert rooms == [4, 4, 8, 20]
    assert difference(torch.cat(parts, 1), model(tokens)) < 1e-12
    model(tokens[:, :1], cache)
    assert cache.room == 21


def test_more_tokens_than_the_context_are_refused_with_a_cache_and_without() -> None:
    model, message = build(context=6), "7 tokens are more than the context of 6"
    with pytest.raises(ValueError, match=message):
        model(draw(model, 7))
    cache = Cache(model)
    model(draw(model, 4, batch=1), cache)
    with pytest.raises(ValueError, match=message):
        model(draw(model, 3, batch=1), cache)
    assert cache.length == 4
    assert model(draw(model, 2, batch=1), cache).shape == (1, 2, 37)


@pytest.mark.parametrize(("preset", "norm"), PRECISIONS)
@pytest.mark.parametrize("place", [1, 17, 39])
def test_a_token_changes_no_earlier_logit(
    make_quantizer: MakeQuantizer, preset: str, norm: str, place: int
) -> None:
    model = quantized(make_quantizer, preset, norm)
    tokens = draw(model, 40)
    changed = tokens.clone()
    changed[:, place:] = (changed[:, place:] + 1) % 37
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :place], after[:, :place])
    assert (before[:, place:] != after[:, place:]).any(-1).all()


def test_a_rotated_product_depends_on_the_distance_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 16).expand(2, 50, 16)
    turn = rotation(0, 50, 16, 100.0, q)
    scores = rotate(q, turn) @ rotate(k, turn).T
    diagonals = [scores.diagonal(distance) for distance in range(-49, 50)]
    assert max(float(d.max() - d.min()) for d in diagonals) < 1e-4  # of angles up to 50 in fp32
    assert torch.stack([d[0] for d in diagonals]).std() > 0.5
    assert torch.allclose(scores[0, 0], q[0] @ k[0])
    assert torch.allclose(rotate(q, turn).norm(dim=-1), q.norm(dim=-1))


def test_angles_after_a_start_are_those_of_the_whole() -> None:
    like = torch.zeros(())
    for whole, part in zip(
        rotation(0, 30, 8, 10000.0, like), rotation(11, 30, 8, 10000.0, like), strict=True
    ):
        assert torch.equal(whole[11:], part)


def test_a_bf16_model_computes_its_angles_in_fp32() -> None:
    """bf16 itself cannot tell position 256 from 257."""
    model = build(context=600, depth=1).bfloat16()
    seen: list[Any] = []
    model.blocks[0].attn.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    assert model(draw(model, 600, batch=1)).dtype == torch.bfloat16
    powers = torch.arange(0, 6, 2, dtype=torch.float64) / 6
    angles = (torch.arange(600, dtype=torch.float64)[:, None] * 10000.0**-powers).repeat(1, 2)
    for turn, exact in zip(seen[0], (angles.cos(), angles.sin()), strict=True):
        assert turn.dtype == torch.bfloat16
        assert (turn - exact).abs().max() < 2**-8  # half a unit of bf16 below 1, and a little


@pytest.mark.parametrize("preset", ["full", "ternary_mean"])
def test_mixed_precision_trains_and_stays_near_fp32(make_quantizer: MakeQuantizer, preset: str) -> None:
    model = quantized(make_quantizer, preset, "layer")
    tokens = draw(model, 17)
    expected = model(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens)
    assert logits.dtype == torch.bfloat16
    assert 0 < (logits - expected).norm() < 0.05 * expected.norm()
    logits.float().logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "heads=5 does not divide dim=24; choose one of 1, 2, 3, 4, 6, 8, 12, 24"),
        ({"kv_heads": 3}, "kv_heads=3 does not divide heads=4; choose one of 1, 2, 4$"),
        ({"kv_heads": 8}, "kv_heads=8 does not divide heads=4"),
        ({"heads": 8}, "heads=8 gives heads of 3: rotary positions need an even size"),
        ({"dim": -24}, "dim=-24 must be at least 1"),
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"heads": 0}, "heads=0 must be at least 1"),
        ({"kv_heads": -2}, "kv_heads=-2 must be at least 1"),
        ({"mlp_ratio": 0.01}, "mlp_ratio=0.01 leaves no hidden units"),
        ({"vocabulary": 0}, "vocabulary=0 must be at least 1"),
        ({"context": -1}, "context=-1 must be at least 1"),
        ({"activation": "gelu"}, "activation=gelu is not known.* Choose one of silu, relu2"),
        ({"activation": "relu"}, "Did you mean 'relu2'"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
        ({"rope_base": 0.0}, "rope_base=0.0 must be above 0"),
        ({"norm_eps": -1e-5}, "norm_eps=-1e-05 must be above 0"),
        ({"norm_eps": float("inf")}, "norm_eps=inf must be above 0"),
        ({"init_std": float("nan")}, "init_std=nan must be above 0"),
    ],
)
def test_bad_sizes_are_refused_before_anything_is_allocated(change: dict[str, Any], message: str) -> None:
    huge = {} if {"dim", "heads", "mlp_ratio"} & set(change) else {"dim": 24 * 10**12}
    with pytest.raises(ValueError, match=message):
        Decoder(**{**TINY, **huge, **change})


def test_weights_are_drawn_with_the_deviation_that_is_asked_for() -> None:
    for tied in (False, True):
        model = Decoder(**{**TINY, "vocabulary": 2000, "dim": 64, "init_std": 0.3, "tied": tied})
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                assert parameter.std().item() == pytest.approx(0.3, rel=0.05), name
        assert (model.head.weight is model.embed.weight) == tied


NORMS = ("attn.norm", "ffn.norm", "attn.sub_norm", "ffn.sub_norm")


@pytest.mark.parametrize("sub_norm", [False, True])
def test_quantized_layers_take_the_place_of_the_norms_that_feed_them(
    make_quantizer: MakeQuantizer, sub_norm: bool
) -> None:
    for norm in ("layer", "rms", "none"):
        model = quantized(make_quantizer, "ternary_mean", norm, sub_norm=sub_norm)
        for block in model.blocks:
            kept = {name for name in NORMS if isinstance(block.get_submodule(name), nn.RMSNorm)}
            assert kept == (set() if norm != "none" else set(NORMS) if sub_norm else set(NORMS[:2]))
            layers = [*block.attn.children(), *block.ffn.children()]
            assert [layer.spec.norm for layer in layers if isinstance(layer, BitLinear)] == [norm] * 7
        assert isinstance(model.norm, nn.RMSNorm)


def test_a_head_of_its_own_size_and_biases_go_through_the_cache() -> None:
    model = build(head_dim=10, qkv_bias=True, qk_norm=True, kv_heads=2).eval()
    assert model.blocks[0].attn.q.weight.shape == (40, 24)
    tokens, cache = draw(model, 9, batch=1), model.cache()
    whole = model(tokens)
    pieces = torch.cat(
        [model(tokens[:, :4], cache), model(tokens[:, 4:5], cache), model(tokens[:, 5:], cache)], 1
    )
    torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-5)
    assert build(qkv_bias=True).blocks[0].attn.q.bias is not None
    assert bool((Decoder(**TINY, qkv_bias=True).blocks[0].attn.q.bias == 0).all())


@pytest.mark.parametrize("exclude", [["embed", "head"], ["embed"]], ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_freezes_packs_and_loads_exactly_kept_or_quantized(
    make_quantizer: MakeQuantizer, tmp_path: Path, tied: bool, exclude: list[str]
) -> None:
    description = Description(
        model="decoder",
        model_arguments={**TINY, "tied": tied},
        quantizer=make_quantizer("ternary_mean").to_json(),
        include=["*"],
        exclude=exclude,
        preprocessing={},
    )
    model = build(tied=tied)
    nn.init.ones_(model.norm.weight)  # a gain would have no place in weights that are the embedding's too
    body = quantize(model, make_quantizer("ternary_mean"), ["*"], exclude).body
    assert ("head" in body) == ("head" not in exclude)
    assert isinstance(model.norm, nn.Identity) == ("head" in body)
    model.eval()
    tokens, reference = draw(model, 11), KERNELS.get("reference")
    expected, embedding = model(tokens), model.embed.weight.detach().clone()
    freeze(model, "auto", reference)
    assert torch.equal(model(tokens), expected)
    save_packed(tmp_path / "model.safetensors", model, description, body)
    loaded, _ = load_packed(tmp_path / "model.safetensors", reference)
    assert isinstance(loaded, Decoder)
    assert torch.equal(loaded(tokens), expected)
    assert torch.equal(loaded.embed.weight, embedding)
    assert isinstance(loaded.head, FrozenLayer) == ("head" in body)
    if "head" not in body:
        assert (loaded.head.weight is loaded.embed.weight) == tied
    stored = sizes(read_packed(tmp_path / "model.safetensors"))
    kept = [model.embed.weight]
    if "head" not in body:
        kept += [model.norm.weight] if tied else [model.norm.weight, model.head.weight]
    assert stored["total_bytes"] - stored["body_bytes"] == sum(weight.nbytes for weight in kept)
