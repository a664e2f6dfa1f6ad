"""Frozen networks as one compiled call, against the same network layer by layer.

Tokens must be equal wherever the two best logits are further apart than `MARGIN`: a norm's last bit may
flip a code, which moves logits by about as much.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitexp.deploy.compiled import CompiledClassifier, CompiledDecoder
from bitexp.deploy.frozen import freeze
from bitexp.deploy.tape import CannotCompileError
from bitexp.kernels import KERNELS
from bitexp.kernels.cpu.jit import missing
from bitexp.models import build_model
from bitexp.models.decoder import Cache, Decoder
from bitexp.models.generation import Sampling, generate, generate_together
from bitexp.quant import QUANTIZERS, quantize
from bitexp.quant.options import LayerOptions
from tests.support.marks import others_slow

if missing():
    pytest.skip(str(missing()), allow_module_level=True)

MARGIN = 0.01
WORDS = 61


def is_packed(options: LayerOptions) -> bool:
    """Whether the kernel makes the activation codes of such layers, and multiplies the weights as packed."""
    if options.weights is None:
        return True
    parts = options.parts(torch.ones(1, 1))
    if parts.activations is None or parts.activations.spec.absmax is None or parts.weights.has_shift:
        return False
    levels = parts.weights.levels
    known = parts.transform is None and parts.sparsifier is None and options.output_norm == "none"
    return known and levels.planes == 1 and levels.low >= -8 and levels.high <= 7


PACKED = {name for name, quantizer in QUANTIZERS.items() if all(map(is_packed, quantizer.variants()))}


def decoder(
    quantizer: str = "ternary_mean", exclude: Sequence[str] = ("embed", "head"), **sizes: Any
) -> Decoder:
    """A frozen decoder whose logits are far apart."""
    torch.manual_seed(0)
    given = {"dim": 32, "depth": 2, "heads": 4, "kv_heads": 4, "init_std": 0.3, "context": 24, **sizes}
    model = build_model("decoder", vocabulary=WORDS, **given)
    quantize(model, quantizer, exclude=list(exclude))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(torch.rand_like(parameter))
    model.eval()
    freeze(model, kernel="cpu")
    assert isinstance(model, Decoder)
    return model


def assert_equal_at_margin(ours: Tensor, theirs: Tensor) -> None:
    """Logits `[..., vocabulary]` that choose the same wherever that is no matter of rounding."""
    assert (ours - theirs).abs().median() < 1e-5
    assert (ours - theirs).abs().max() < max(0.1, 0.02 * float(theirs.abs().max()))
    best = theirs.topk(2, -1).values
    clear = best[..., 0] - best[..., 1] > MARGIN
    assert clear.float().mean() > 0.5
    assert torch.equal(ours.argmax(-1)[clear], theirs.argmax(-1)[clear])


@torch.inference_mode()
def spoken(model: Any, prompt: list[int], following: list[int]) -> Tensor:
    """Logits of a prompt's last token and of every token that follows, one by one."""
    cache = model.cache()
    found = [model(torch.tensor([prompt]), cache)[0, -1].clone()]
    found += [model(torch.tensor([[token]]), cache)[0, -1].clone() for token in following]
    return torch.stack(found)


def check_decoder(model: Decoder) -> None:
    draws = torch.Generator().manual_seed(1)
    for length in (1, 2, 9):
        words = torch.randint(WORDS, (22,), generator=draws).tolist()
        compiled = CompiledDecoder(model)
        ours, theirs = (spoken(m, words[:length], words[length:]) for m in (compiled, model))
        assert_equal_at_margin(ours, theirs)


@pytest.mark.parametrize("quantizer", others_slow(sorted(PACKED), sorted(PACKED)[::3]))
def test_a_token_has_the_logits_of_the_ordinary_way_with_every_quantizer(quantizer: str) -> None:
    check_decoder(decoder(quantizer))


@pytest.mark.parametrize(
    "sizes",
    [
        {"sub_norm": True},
        {"activation": "relu2"},
        {"activation": "relu2", "sub_norm": True, "tied": True},
        {"kv_heads": 1},
        {"kv_heads": 2, "rope_base": 100.0},
        {"tied": True},
        {"norm_eps": 1e-3, "mlp_ratio": 2.1},
        {"dim": 36, "heads": 2, "kv_heads": 1},
        {"qkv_bias": True, "kv_heads": 2},
        {"head_dim": 6, "kv_heads": 2},
        {"exclude": ["embed"]},
        {"exclude": ["embed", "head"], "quantizer": "full"},
        {"exclude": ["embed", "head", "blocks.1"], "sub_norm": True},
    ],
)
def test_a_token_has_the_logits_of_the_ordinary_way_with_every_option(sizes: dict[str, Any]) -> None:
    check_decoder(decoder(**sizes))


def test_norms_of_heads_are_left_to_the_ordinary_way() -> None:
    with pytest.raises(CannotCompileError, match="Decoder does not record itself"):
        CompiledDecoder(decoder(qk_norm=True))


def test_a_norm_is_rms_where_the_quantizer_says_so() -> None:
    from bitexp.quant.presets import as_quantizer

    preset = as_quantizer("ternary_mean").to_json()
    check_decoder(decoder({**preset, "norm": "rms"}))  # type: ignore[arg-type]


@pytest.mark.parametrize("quantizer", sorted(set(QUANTIZERS) - PACKED))
def test_what_cannot_be_compiled_is_told_with_the_layer(quantizer: str) -> None:
    with pytest.raises(CannotCompileError, match=r"blocks\.0\.(attn\.q|mlp\.)"):
        CompiledDecoder(decoder(quantizer))


def test_a_norm_of_the_output_cannot_be_compiled() -> None:
    from bitexp.quant.presets import as_quantizer

    section = {**as_quantizer("ternary_mean").to_json(), "output_norm": "layer"}
    with pytest.raises(CannotCompileError, match=r"blocks\.0\.attn\.q has a norm of its output"):
        CompiledDecoder(decoder(section))  # type: ignore[arg-type]


def test_another_kernel_training_and_other_networks_cannot_be_compiled() -> None:
    model = decoder()
    with pytest.raises(CannotCompileError, match=r"call model\.eval\(\) first"):
        CompiledDecoder(model.train())
    q: Any = model.eval().get_submodule("blocks.0.attn.q")
    q.use(KERNELS.get("reference"))
    with pytest.raises(CannotCompileError, match=r"blocks\.0\.attn\.q is not multiplied packed"):
        CompiledDecoder(model)
    with pytest.raises(CannotCompileError, match="Sequential does not record itself"):
        CompiledClassifier(nn.Sequential(nn.Linear(2, 2)).eval())
    with pytest.raises(CannotCompileError, match="float64"):
        CompiledDecoder(decoder(quantizer="full").double())


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(0.8, seed=3), Sampling(1.2, 20, 0.9, seed=1)])
def test_texts_are_the_same_beyond_the_context_too(sampling: Sampling) -> None:
    model = decoder(init_std=1.0)
    ours, theirs = (
        list(itertools.islice(generate(m, [3, 4, 5], sampling), 60)) for m in (CompiledDecoder(model), model)
    )
    assert ours == theirs
    assert len(set(ours)) > 5


def test_texts_are_the_same_when_their_caches_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by itself: they are of different lengths."""
    model = decoder(init_std=1.0)
    prompts, sampling = [[5], [1, 2, 3], list(range(9))], Sampling(0.0)
    writer = CompiledDecoder(model, 2)
    whole = list(itertools.islice(generate_together(writer, prompts, sampling), 14))
    monkeypatch.setattr("bitexp.models.decoder.ROOM", 2)
    assert list(itertools.islice(generate_together(writer, prompts, sampling), 14)) == whole


@pytest.mark.parametrize("texts", [1, 2, 8])
def test_prompts_of_different_lengths_go_together(texts: int) -> None:
    """Whether they fit into one call or not."""
    model = decoder(init_std=1.0)
    prompts, sampling = [[5], [1, 2, 3], list(range(24)), [9, 9]], Sampling(1.0, seed=4)
    together = generate_together(CompiledDecoder(model, texts), prompts, sampling)
    made = list(zip(*itertools.islice(together, 30), strict=True))
    for i, prompt in enumerate(prompts):
        alone = itertools.islice(generate(model, prompt, Sampling(1.0, seed=4 + i)), 30)
        assert list(made[i]) == list(alone)


def test_a_text_stops_at_its_end_and_all_of_them_at_the_last_one() -> None:
    model = decoder(init_std=1.0)
    prompts, sampling = [[5], [1, 2, 3]], Sampling(0.0)
    whole = [list(itertools.islice(generate(model, p, sampling), 40)) for p in prompts]
    end = next(token for token in whole[0] if token in whole[1])
    for writer in (model, CompiledDecoder(model, 2)):
        made = list(zip(*generate_together(writer, prompts, sampling, end), strict=True))
        for text, full in zip(made, whole, strict=True):
            kept = full[: full.index(end) + 1]
            assert list(text) == kept + [None] * (len(text) - len(kept))
        assert max(text.index(end) for text in made) == len(made[0]) - 1


def test_steps_refuse_unknown_tokens_and_full_contexts_as_the_model_does() -> None:
    model = decoder(context=3)
    compiled, cache = CompiledDecoder(model), model.cache()
    for token in (-1, WORDS):
        with pytest.raises(ValueError, match=f"the token {token} is not one of the {WORDS}"):
            compiled.step([token], [cache])
    for _ in range(3):
        compiled.step([1], [cache])
    with pytest.raises(ValueError, match="4 tokens are more than the context of 3"):
        compiled.step([1], [cache])
    assert cache.length == 3


def test_the_cache_holds_what_the_model_puts_there() -> None:
    model = decoder(kv_heads=2)
    caches: list[Cache] = []
    for writer in (model, CompiledDecoder(model)):
        caches.append(writer.cache())
        with torch.inference_mode():
            for token in (1, 2, 3):
                writer(torch.tensor([[token]]), caches[-1])
    assert caches[0].length == caches[1].length == 3
    ours, theirs = (cache.store[..., :3, :] for cache in caches)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def classifier(name: str, quantizer: str, exclude: list[str], **sizes: Any) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(name, shape=(2, 8, 12), classes=10, **sizes)
    quantize(model, quantizer, exclude=exclude)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    model.eval()
    freeze(model, kernel="cpu")
    return model


@pytest.mark.parametrize("quantizer", sorted(PACKED))
@pytest.mark.parametrize(
    ("name", "exclude", "sizes"),
    [
        ("mlp", ["head"], {"hidden": [40, 30], "activation": "relu"}),
        ("mlp", [], {"hidden": [40], "activation": "gelu"}),
        ("mlp", ["layers.0"], {"hidden": [40, 30], "activation": "silu"}),
        ("vit", ["head", "patch_embed", "pos_embed"], {"pool": "cls", "patch": 4}),
        ("vit", ["pos_embed"], {"pool": "mean", "patch": 2, "heads": 4}),
    ],
)
def test_an_image_has_the_logits_of_the_ordinary_way(
    name: str, exclude: list[str], sizes: dict[str, Any], quantizer: str
) -> None:
    model = classifier(name, quantizer, exclude, **sizes)
    compiled = CompiledClassifier(model)
    images = torch.randn(16, 2, 8, 12)
    with torch.inference_mode():
        ours = torch.cat([compiled(image[None]) for image in images])
        assert_equal_at_margin(ours, torch.cat([model(image[None]) for image in images]))
        assert torch.equal(compiled(images), model(images))
