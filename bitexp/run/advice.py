"""Settings that run and that are known to spoil what they are used for: said once, with the reason."""

from __future__ import annotations

from collections.abc import Iterator

from bitexp.config.schema import Settings
from bitexp.quant.layers import QuantizedLayer, quantized_layers
from bitexp.quant.patterns import matches
from bitexp.run.parts import Parts

LAST = ("*.o", "*.down", "*.proj", "*.fc2")
"""The output projections of attention and feed-forward, whose inputs have outliers."""


def advice(settings: Settings, parts: Parts) -> list[str]:
    """What a person should know before the first step."""
    layers = quantized_layers(parts.model)
    return [*averaged(settings, layers), *unclipped(layers), *four_bits(layers)]


def averaged(settings: Settings, layers: dict[str, QuantizedLayer]) -> Iterator[str]:
    """An average of latents has other codes than any of them."""
    if layers and settings.callbacks.ema_decay is not None:
        yield (
            "callbacks.ema_decay averages latent weights, and the codes of an average are not an average of "
            "codes: what is tested may be worse than what was trained; compare with callbacks.ema_decay=null"
        )


def unclipped(layers: dict[str, QuantizedLayer]) -> Iterator[str]:
    """A clip in absolute units that no latent is near."""
    clipped = [
        layer for layer in layers.values() if (part := layer.options.estimator) and part.name == "clipped"
    ]
    if not clipped:
        return
    largest = max(float(layer.weight.detach().abs().max()) for layer in clipped)
    at = min(part.options["at"] for layer in clipped if (part := layer.options.estimator))
    if largest < at / 4:
        yield (
            f"estimator=clipped acts at {at:g}, in units of the latent weights, and the largest of these "
            f"begins with {largest:.2g}: it is straight_through until they have grown"
        )


def four_bits(layers: dict[str, QuantizedLayer]) -> Iterator[str]:
    """int4 activations by the mean where inputs have outliers, and nothing that spreads them."""
    found = [
        name
        for name, layer in layers.items()
        if matches(name, LAST)
        and layer.options.transform is None
        and (part := layer.options.activations) is not None
        and (part.name == "int4" or (part.options.get("scale") == "absmean" and part.options["bits"] <= 4))
    ]
    if found:
        others = f" and {len(found) - 1} more" * (len(found) > 1)
        yield (
            f"int4 activations in {found[0]}{others}: their outliers made language models diverge "
            "(arXiv 2411.04965, 2504.18415); quantizer=bitnet_a4_8 keeps int8 there, "
            "quantizer=bitnet_v2 rotates them"
        )
