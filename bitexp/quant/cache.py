"""Weights are quantized once per optimizer step, however many batches' gradients a step adds up."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from bitexp.quant.modes import transformed
from bitexp.quant.quantizer import Quantizer

_steps = 0


def _count(*_: Any) -> None:
    global _steps
    _steps += 1


register_optimizer_step_post_hook(_count)


class CodesCache:
    """The codes and the step of one layer's latent weights, as long as these are the same numbers.

    The same are: the same parameter, at the same place in memory, of the same version (which every
    in-place operation, every optimizer and `load_state_dict` raise), with no step of any optimizer in
    between (some write to `.data`, which has no version), and equal in a sample of their values (other
    code that writes to `.data`). A layer's `train()` and `eval()` clear it. Nothing is kept while gradients
    are off, of anything but a parameter, nor inside of transforms and compilation; what is kept is no part of
    the layer's state, of copies, or of pickles.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forgets."""
        self._weight: Tensor | None = None
        self._sampled: np.ndarray[Any, Any] | None = None
        self._key: tuple[Any, ...] = ()
        self._kept: tuple[Tensor, Tensor] | None = None

    def weights(self, quantizer: Quantizer, weight: Tensor) -> tuple[Tensor, Tensor]:
        """`quantizer.weights(weight)`, computed anew where the weights may have changed."""
        lasting = not transformed() and type(weight) is nn.Parameter and torch.is_grad_enabled()
        if not lasting or weight.is_inference():
            return quantizer.weights(weight)
        place = quantizer, weight.data_ptr(), weight.shape
        if self._weight is not weight or self._key[0] != place:
            self._weight, self._sampled, self._kept = weight, sample(weight), None
        key = place, weight._version, _steps, b"" if self._sampled is None else self._sampled.tobytes()
        if self._kept is None or self._key != key:
            self._key, self._kept = key, quantizer.weights(weight)
        return self._kept

    def __deepcopy__(self, memo: Any) -> CodesCache:
        return CodesCache()

    def __reduce__(self) -> tuple[type[CodesCache], tuple[()]]:
        return CodesCache, ()


def sample(weight: Tensor) -> np.ndarray[Any, Any] | None:
    """A view of some bytes of the weights; None on a device that would have to be waited for."""
    if weight.device.type != "cpu" or not weight.is_contiguous():
        return None
    memory = weight.detach().view(torch.uint8).numpy().reshape(-1)
    return memory[:: memory.size // 256 | 1]  # an odd distance meets every byte of a float
