"""Weights are quantized once per optimizer step, however many batches' gradients a step adds up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, is_grad_enabled, nn, uint8
from torch.optim.optimizer import register_optimizer_step_post_hook

from bitexp.quant.modes import followed, version
from bitexp.quant.product import Quantized


class Steps:
    """How many steps all optimizers of this process have made since the first layer was quantized."""

    count = 0
    watched = False

    @classmethod
    def watch(cls) -> None:
        """Begins to count."""
        if not cls.watched:
            cls.watched = True
            register_optimizer_step_post_hook(cls.add)

    @classmethod
    def add(cls, *_: Any) -> None:
        """One more step."""
        cls.count += 1


class CodesCache:
    """What one layer's latent weights are as integers, as long as these are the same numbers.

    The same are: the same parameters, at the same place in memory, of the same version (which every
    in-place operation, every optimizer and `load_state_dict` raise), with no step of any optimizer in
    between (some write to `.data`, which has no version), and equal in a sample of their values (other
    code that writes to `.data`). A layer's `train()` and `eval()` clear it. Nothing is kept while gradients
    are off, of anything but a parameter, nor inside of transforms and compilation; what is kept is no part of
    the layer's state, of copies, or of pickles.
    """

    def __init__(self) -> None:
        Steps.watch()
        self.clear()

    def clear(self) -> None:
        """Forgets."""
        self._weight: Tensor | None = None
        self._address = 0
        self._sampled: np.ndarray[Any, Any] | None = None
        self._key: tuple[object, ...] = ()
        self._kept: Quantized | None = None

    def get(
        self,
        quantize: Callable[[Tensor], Quantized],
        source: object,
        weight: Tensor,
        learned: tuple[Tensor, ...],
    ) -> Quantized:
        """`quantize(weight)`, computed anew where it, `source` or the learned parameters may be other."""
        lasting = not followed() and type(weight) is nn.Parameter and is_grad_enabled()
        if learned:
            lasting = lasting and all(type(p) is nn.Parameter for p in learned)
        if not lasting or weight.is_inference():
            return quantize(weight)
        address = weight.data_ptr()
        if self._weight is not weight or self._address != address:
            self._weight, self._address = weight, address
            self._sampled, self._kept = sample(weight), None
        sampled = b"" if self._sampled is None else self._sampled.tobytes()
        key = (source, Steps.count, sampled, version(weight), *map(version, learned))
        if self._kept is None or self._key != key:
            self._key, self._kept = key, quantize(weight)
        return self._kept

    def __deepcopy__(self, memo: Any) -> CodesCache:
        return CodesCache()

    def __reduce__(self) -> tuple[type[CodesCache], tuple[()]]:
        return CodesCache, ()


def sample(weight: Tensor) -> np.ndarray[Any, Any] | None:
    """A view of some bytes of the weights; None on a device that would have to be waited for."""
    if weight.device.type != "cpu" or not weight.is_contiguous():
        return None
    memory = weight.detach().view(uint8).numpy().reshape(-1)
    return memory[:: memory.size // 256 | 1]  # an odd distance meets every byte of a float
