"""Networks with the layers of PyPI `bitlinear`: a second implementation, to compare ours with in training.

They are for `quantizer=full`, which leaves these layers as they are; other quantizers are refused.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from bitexp.common.errors import Unusable
from bitexp.models.decoder import Decoder
from bitexp.models.mlp import MLP
from bitexp.models.registry import MODELS
from bitexp.models.taps import Tap, Taps

Measure = Literal["AbsMean", "AbsMedian"]


@MODELS.register("bitlinear_mlp")
class BitlinearMLP(nn.Module):
    """`mlp` whose hidden layers are `bitlinear.BitLinear`, with its defaults but for the measure.

    Its first weights are those of `mlp`.

    Args:
        measure: of the weights' scale, by the name of its class there.

    Raises:
        Unusable: `bitlinear` is not installed.
    """

    taps: ClassVar[Taps] = {"hidden": Tap("network.layers.*")}

    def __init__(
        self,
        *,
        shape: tuple[int, int, int],
        classes: int,
        hidden: list[int],
        activation: Literal["relu", "gelu", "silu"],
        dropout: float,
        measure: Measure,
    ) -> None:
        super().__init__()
        self.network = MLP(
            shape=shape, classes=classes, hidden=hidden, activation=activation, dropout=dropout
        )
        self.network.layers = nn.ModuleList(theirs(layer, measure) for layer in self.network.layers)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


@MODELS.register("bitlinear_decoder")
class BitlinearDecoder(Decoder):
    """`decoder` whose blocks have `bitlinear.BitLinear`, with its defaults but for the measure.

    These norm their inputs, so that the norms before them are left out, as where ours are put into `decoder`.
    Its first weights are those of `decoder`.

    Args:
        measure: of the weights' scale, by the name of its class there.
        options: those of `decoder`.

    Raises:
        Unusable: `bitlinear` is not installed.
    """

    def __init__(self, *, measure: Measure, **options: Any) -> None:
        super().__init__(**options)
        vars(self)["record"] = None  # a tape has none of these layers
        for part in list(self.blocks.modules()):
            for linear, norm in getattr(part, "prenorm", {}).items():
                setattr(part, linear, theirs(getattr(part, linear), measure))
                setattr(part, norm, nn.Identity())


def theirs(layer: nn.Module, measure: Measure) -> nn.Module:
    """A layer of the package with the weights of one of ours. Raises `Unusable` where it is not installed."""
    try:
        import bitlinear
    except ImportError:
        raise Unusable('layers of PyPI bitlinear need pip install "bitexp[bench]"') from None
    assert isinstance(layer, nn.Linear)
    made: nn.Module = bitlinear.BitLinear(
        layer.in_features, layer.out_features, bias=layer.bias is not None, weight_measure=measure
    )
    made.load_state_dict(layer.state_dict())
    return made
