"""Stratified splits: exact in size, in proportion, stable."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitexp.common.checks import check_share, held_out_count
from bitexp.common.errors import UserError
from bitexp.data.images.split import stratified


@given(st.data())
def test_every_class_gives_its_share(data):
    labels = torch.tensor(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=60)))
    held = data.draw(st.integers(0, len(labels)))
    rest, out = stratified(labels, held, seed=data.draw(st.integers(0, 3)))
    assert sorted([*rest.tolist(), *out.tolist()]) == list(range(len(labels)))
    assert len(out) == held
    for cls in range(5):
        share = int((labels == cls).sum()) * held / len(labels)
        assert abs(int((labels[out] == cls).sum()) - share) < 1


def test_the_same_seed_holds_out_the_same_images():
    labels = torch.arange(200) % 7
    first, again, other = (stratified(labels, 40, seed)[1].tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_the_split_never_changes():
    # a change here would move images between the parts of everybody's runs
    assert stratified(torch.arange(20) % 2, 4, 0)[1].tolist() == [0, 9, 13, 18]


def test_fractions_and_counts():
    assert held_out_count(0.1, 1437, "val_size") == 144
    assert held_out_count(100, 1437, "val_size") == 100
    with pytest.raises(UserError, match="val_size=10 holds out 10 of 10 images"):
        held_out_count(10, 10, "val_size")


@pytest.mark.parametrize("value", [-1, -0.1, 1.0, 1.5, float("nan")])
def test_neither_fraction_nor_count(value):
    with pytest.raises(ValueError, match=r"val_size=.* is neither a fraction"):
        check_share("val_size", value)
