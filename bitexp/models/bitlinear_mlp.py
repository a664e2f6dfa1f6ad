"""The MLP with the layers of PyPI `bitlinear`: a second implementation, to compare ours with in training."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn

from bitexp.common.errors import Unusable
from bitexp.models.mlp import MLP
from bitexp.models.registry import MODELS
from bitexp.models.taps import Tap, Taps


@MODELS.register("bitlinear_mlp")
class BitlinearMLP(nn.Module):
    """`mlp` whose hidden layers are `bitlinear.BitLinear`, with its defaults but for the measure.

    It is for `quantizer=full`, which leaves them as they are; other quantizers are refused. Its first weights
    are those of `mlp`.

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
        measure: Literal["AbsMean", "AbsMedian"],
    ) -> None:
        super().__init__()
        self.network = MLP(
            shape=shape, classes=classes, hidden=hidden, activation=activation, dropout=dropout
        )
        self.network.layers = nn.ModuleList(theirs(layer, measure) for layer in self.network.layers)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


def theirs(layer: nn.Module, measure: str) -> nn.Module:
    """A layer of the package with the weights of one of ours. Raises `Unusable` where it is not installed."""
    try:
        import bitlinear
    except ImportError:
        raise Unusable('model=bitlinear_mlp needs PyPI bitlinear: pip install "bitexp[bench]"') from None
    assert isinstance(layer, nn.Linear)
    made: nn.Module = bitlinear.BitLinear(layer.in_features, layer.out_features, weight_measure=measure)
    made.load_state_dict(layer.state_dict())
    return made
