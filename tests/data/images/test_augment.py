"""Batched crop and flip against torchvision on single images."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional

from bitexp.data.images.augment import Augmentation, check_augment, crop_flip


@given(st.data())
def test_equals_torchvision_image_by_image(data):
    channels, height, width = (data.draw(st.integers(1, 5)) for _ in range(3))
    border = data.draw(st.integers(0, min(height, width)))
    batch = data.draw(st.integers(1, 6))
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    pixels = torch.randint(0, 256, (batch, channels, height, width), dtype=torch.uint8, generator=draw)
    shifts = torch.randint(0, 2 * border + 1, (batch, 2), generator=draw)
    flips = torch.rand(batch, generator=draw) < 0.5
    result = crop_flip(pixels, border, shifts, flips)
    for image, (top, left), flip, got in zip(pixels, shifts.tolist(), flips, result, strict=True):
        expected = functional.crop(functional.pad(image, [border]), top, left, height, width)
        expected = functional.hflip(expected) if flip else expected
        assert torch.equal(got, expected)


def test_an_image_is_augmented_alike_in_any_batch():
    pixels = torch.arange(10 * 3 * 8 * 8).remainder(251).to(torch.uint8).reshape(10, 3, 8, 8)
    augment = Augmentation({"crop": 2, "flip": True}, count=10, seed=1)
    whole = augment(pixels, 4, list(range(10)))
    alone = Augmentation({"crop": 2, "flip": True}, count=10, seed=1)
    for index in (7, 0, 3):
        assert torch.equal(alone(pixels[[index]], 4, [index])[0], whole[index])
    assert not torch.equal(augment(pixels, 5, list(range(10))), whole)  # another epoch
    assert torch.equal(augment(pixels, 4, list(range(10))), whole)  # and back


def test_draws_cover_the_whole_range_evenly():
    augment = Augmentation({"crop": 1, "flip": True}, count=9000, seed=0)
    draws = augment.draws(0)
    for column in (1, 2):
        counts = torch.bincount((draws[:, column] * 3).long(), minlength=3)
        assert counts.shape == (3,)
        assert (counts - 3000).abs().max() < 200
    assert (draws[:, 0] < 0.5).float().mean() == pytest.approx(0.5, abs=0.02)


def test_switched_off_parts_change_nothing():
    pixels = torch.arange(2 * 16, dtype=torch.uint8).reshape(2, 1, 4, 4)
    augment = Augmentation({"crop": 0, "flip": False}, count=2, seed=0)
    assert torch.equal(augment(pixels, 0, [0, 1]), pixels)


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (
            {"crop": 1, "flip": True, "crops": 2},
            r"unknown key 'augment.crops'. Did you mean 'crop'",
        ),
        ({"crop": 1}, "the key 'augment.flip' is missing"),
        ({"crop": 9, "flip": True}, "augment.crop=9 .* use 0 .off. to 8"),
        ({"crop": -1, "flip": True}, "augment.crop=-1"),
    ],
)
def test_wrong_settings_are_refused(augment, message):
    with pytest.raises(ValueError, match=message):
        check_augment(augment, (3, 8, 8))


@pytest.mark.parametrize(("channels", "white"), [(1, 16), (3, 255)])
def test_rand_augment_is_torchvisions_by_the_draws_of_each_image(channels, white):
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, white + 1, (6, channels, 8, 8), dtype=torch.uint8, generator=draw)
    options = {"crop": 0, "flip": False, "rand_augment": 7}
    augment = Augmentation(options, count=6, seed=1, white=white)
    whole = augment(pixels, 2, list(range(6)))
    assert whole.dtype == torch.uint8
    assert int(whole.max()) <= white
    assert not torch.equal(whole, pixels)
    before = torch.random.get_rng_state()
    assert torch.equal(Augmentation(options, 6, 1, white)(pixels[[4]], 2, [4])[0], whole[4])
    assert torch.equal(torch.random.get_rng_state(), before)  # of nothing else
    assert not torch.equal(augment(pixels, 3, list(range(6))), whole)
