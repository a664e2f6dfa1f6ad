"""What each of several processes measures by itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from bitexp.train.buffers import FirstBuffers, has_batch_norm


@pytest.mark.parametrize(("processes", "sent"), [(1, 0), (2, 3)])
def test_several_processes_validate_with_the_buffers_of_the_first(
    processes: int, sent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Any] = []
    monkeypatch.setattr(torch.distributed, "broadcast", lambda buffer, source: taken.append((buffer, source)))
    module: Any = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    trainer: Any = SimpleNamespace(world_size=processes)
    FirstBuffers().on_validation_epoch_start(trainer, module)
    assert [source for _, source in taken] == [0] * sent
    assert all(buffer is own for (buffer, _), own in zip(taken, module.buffers(), strict=False))


def test_what_normalizes_by_the_batch_is_found() -> None:
    assert has_batch_norm(nn.Sequential(nn.Sequential(nn.BatchNorm1d(2))))
    assert not has_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.GroupNorm(1, 2)))
