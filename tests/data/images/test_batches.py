"""Statistics and normalization."""

import pytest
import torch

from bitexp.common.errors import UserError
from bitexp.data.images.batches import ImageBatches, ImagesInMemory, channel_statistics, checked_images


def random_images(count=37):
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 5, 4), dtype=torch.uint8, generator=draw)


def test_statistics_are_those_of_float64():
    pixels = random_images(600)
    indices = torch.arange(0, 600, 2)
    mean, std = channel_statistics(ImagesInMemory(pixels, torch.zeros(600)), indices, 255)
    expected = pixels[::2].double() / 255
    assert mean == pytest.approx(expected.mean((0, 2, 3)).tolist(), rel=1e-14)
    assert std == pytest.approx(expected.std((0, 2, 3), correction=0).tolist(), rel=1e-12)


def test_statistics_do_not_depend_on_the_order():
    images = ImagesInMemory(random_images(600), torch.zeros(600))
    shuffled = torch.randperm(600, generator=torch.Generator().manual_seed(1))
    assert channel_statistics(images, torch.arange(600), 255) == channel_statistics(images, shuffled, 255)


def test_a_constant_channel_is_only_shifted():
    images = ImagesInMemory(torch.full((3, 1, 2, 2), 51, dtype=torch.uint8), torch.zeros(3))
    assert channel_statistics(images, torch.arange(3), 255) == ([0.2], [1.0])


def test_a_batch_is_divided_shifted_and_scaled():
    pixels = random_images()
    labels = torch.arange(37)
    prepared = ImageBatches(ImagesInMemory(pixels, labels), 16, [0.5, 1.0, 2.0], [2.0, 4.0, 8.0], None)
    sent, got = prepared[0, [3, 1]]
    assert sent.dtype == torch.uint8  # a quarter of the bytes between processes
    images, got = prepared.finish(sent, got)
    mean, std = torch.tensor([0.5, 1, 2]), torch.tensor([2.0, 4, 8])
    expected = (pixels[[3, 1]] / 16 - mean[:, None, None]) / std[:, None, None]
    assert torch.equal(images, expected)
    assert got.tolist() == [3, 1]


def test_the_digest_sees_pixels_labels_and_shape():
    pixels = random_images(4)
    labels = torch.tensor([0, 1, 2, 3])
    changed = pixels.clone()
    changed[3, 2, 4, 3] ^= 1
    parts = [
        ImagesInMemory(pixels, labels),
        ImagesInMemory(changed, labels),
        ImagesInMemory(pixels, labels.flip(0)),
        ImagesInMemory(pixels.reshape(4, 3, 4, 5), labels),
    ]
    assert len({part.digest for part in parts}) == 4
    assert ImagesInMemory(pixels.clone(), labels.clone()).digest == parts[0].digest


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(3)),
        (torch.zeros(2, 1, 4, 5), torch.zeros(2)),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, 2)),
        (torch.zeros(0, 1, 4, 4), torch.zeros(0)),
        (torch.zeros(2, 1, 4, 4), torch.tensor([0, 10])),
        (torch.zeros(2, 1, 4, 4), torch.tensor([-1, 0])),
    ],
)
def test_data_that_break_their_promise_are_refused(images, labels):
    with pytest.raises(UserError, match="/data/file holds"):
        checked_images(images.to(torch.uint8), labels, (1, 4, 4), 10, "/data/file")
