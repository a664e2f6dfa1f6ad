"""A teacher's logits on disk: computed once, whole or made again, the same whoever asks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitexp.tasks.distillation.cached_logits import ABOUT, LOGITS, CachedLogits, open_logits

NUMBERS = torch.tensor([9, 2, 5, 7, 11, 3, 0])


class Asked:
    """Logits of which each tells its sample, and what was asked for."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, numbers: list[int]) -> Tensor:
        self.batches.append(numbers)
        return torch.tensor(numbers)[:, None] + torch.tensor([0.25, 0.5])


def opened(root: Path, compute: Callable[[list[int]], Tensor], **about: str) -> CachedLogits:
    return open_logits({"teacher": "one", **about}, NUMBERS, 3, compute, root)


def test_rows_are_found_by_the_number_of_the_sample(tmp_path: Path) -> None:
    compute = Asked()
    kept = opened(tmp_path, compute)
    assert compute.batches == [[0, 2, 3], [5, 7, 9], [7, 9, 11]]  # of one size, in order
    assert torch.equal(kept.rows([11, 0, 5]), torch.tensor([[11.25, 11.5], [0.25, 0.5], [5.25, 5.5]]))
    again = Asked()
    assert torch.equal(opened(tmp_path, again).rows([7, 7]), torch.tensor([[7.25, 7.5]] * 2))
    assert again.batches == []
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert (folder / LOGITS).stat().st_size == 7 * 2 * 4


def test_other_circumstances_are_other_logits(tmp_path: Path) -> None:
    opened(tmp_path, Asked())
    for about in ({"teacher": "another"}, {"precision": "bf16"}):
        compute = Asked()
        opened(tmp_path, compute, **about)
        assert compute.batches


@pytest.mark.parametrize("damage", ["cut", "changed", "record", "gone"])
def test_damaged_logits_are_noticed_and_computed_again(damage: str, tmp_path: Path) -> None:
    assert not opened(tmp_path, Asked()).mended
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    content = (folder / LOGITS).read_bytes()
    if damage == "cut":
        (folder / LOGITS).write_bytes(content[:-4])
    elif damage == "changed":
        (folder / LOGITS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "gone":
        (folder / LOGITS).unlink()
    else:
        record = json.loads((folder / ABOUT).read_text())
        (folder / ABOUT).write_text(json.dumps({**record, "shape": [7, 1]}))
    compute = Asked()
    kept = opened(tmp_path, compute)
    assert kept.mended
    assert compute.batches
    assert (folder / LOGITS).read_bytes() == content


def test_what_a_killed_process_left_is_no_cache(tmp_path: Path) -> None:
    def killed(numbers: list[int]) -> Tensor:
        if 5 in numbers:
            raise KeyboardInterrupt
        return Asked()(numbers)

    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path, killed)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert not opened(tmp_path, Asked()).mended
