"""What a step of an optimizer does with a closure, before it changes weights."""

from __future__ import annotations

from collections.abc import Callable

import torch


def evaluated(closure: Callable[[], float] | None) -> float | None:
    """The loss that a closure gives, with gradients even where none are recorded; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
