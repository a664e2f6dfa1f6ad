"""The registry of calibrations, and what every one is: inputs go through, and nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from bitexp.common.registry import Registry

Told = Callable[[str, float, float], None]
"""Takes the name of a layer, and a relative error before and after."""

CALIBRATIONS: Registry[type[Calibration]] = Registry("calibration")


class Calibration:
    """A way to better a quantized network by looking at inputs, without labels and without training.

    Nothing in it is random: the same weights and inputs give the same network.

    Args:
        samples: training inputs that it looks at.

    Raises:
        ValueError: an option that is out of its range.
    """

    def __init__(self, *, samples: int = 1024) -> None:
        if samples < 1:
            raise ValueError(f"samples={samples} must be at least 1")
        self.samples = samples

    def check(self, model: nn.Module) -> None:
        """Raises `ValueError` where there is nothing in the network that it could calibrate."""
        raise NotImplementedError

    def __call__(
        self, model: nn.Module, batches: Sequence[Tensor], told: Told = lambda *_: None
    ) -> dict[str, tuple[float, float]]:
        """Calibrates the network in place; it is in evaluation afterwards.

        Args:
            model: with quantized layers, lambda at 1.
            batches: inputs of the network, on its device.
            told: is called after each layer.

        Returns:
            where it measures one, a relative error by the name of a layer, before and after.
        """
        raise NotImplementedError
