"""The IDX reader against torchvision's, on generated files; real Fashion-MNIST from Debian."""

import gzip

import pytest
import torch
from torchvision.datasets import MNIST

from bitexp.common.errors import UserError
from bitexp.data.images.mnist import FashionMnist, Mnist, read_idx
from bitexp.data.images.published import DEBIAN


def test_reads_what_torchvision_reads(tmp_path, arguments, write_mnist):
    write_mnist(tmp_path / "MNIST" / "raw")
    data = Mnist(**arguments(data_dir=str(tmp_path), val_size=10))
    for part in ("train", "test"):
        expected = MNIST(tmp_path, train=part == "train")
        got = data.read(part)
        assert torch.equal(got.images[:, 0], expected.data)
        assert torch.equal(got.labels, expected.targets)


def test_the_same_data_compressed_elsewhere_are_the_same_data(tmp_path, arguments, write_mnist):
    write_mnist(tmp_path / "plain")
    write_mnist(tmp_path / "zipped" / "mnist", gz=True)
    write_mnist(tmp_path / "other", seed=1)
    plain, zipped, other = (
        Mnist(**arguments(data_dir=str(tmp_path / name))).fingerprint()
        for name in ("plain", "zipped", "other")
    )
    assert plain == zipped != other


def test_a_file_that_changes_is_read_again(tmp_path, arguments, write_mnist):
    write_mnist(tmp_path)
    before = Mnist(**arguments(data_dir=str(tmp_path))).fingerprint()
    write_mnist(tmp_path, seed=1)
    assert Mnist(**arguments(data_dir=str(tmp_path))).fingerprint() != before


def test_trains_and_tests(tmp_path, arguments, write_mnist):
    parts = write_mnist(tmp_path)
    data = Mnist(**arguments(data_dir=str(tmp_path), batch_size=20, eval_batch_size=8))
    data.setup()
    assert data.sizes == {"train": 54, "val": 6, "test": 20}
    assert len(list(data.train_dataloader())) == 2
    images = torch.cat([images for images, _ in data.test_dataloader()])
    facts = data.preprocessing()
    pixels = images * facts["std"][0] + facts["mean"][0]
    assert torch.equal((pixels * 255).round().to(torch.uint8)[:, 0], parts["test"][0])


WHOLE = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3]) + bytes(6)


def test_reads_any_number_of_dimensions(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(WHOLE)
    assert torch.equal(read_idx(path), torch.zeros(2, 3, dtype=torch.uint8))


ZIPPED = gzip.compress(WHOLE, mtime=0)  # with the time in it, two workers would collect other tests


@pytest.mark.parametrize(
    "content",
    [
        b"",
        WHOLE[:3],
        WHOLE[:9],
        WHOLE[:12],
        WHOLE[:-1],
        WHOLE + b"\0",
        b"\1" + WHOLE[1:],
        WHOLE[:2] + b"\x0d" + WHOLE[3:],  # floats
        ZIPPED[:-9],
        ZIPPED[:-9] + b"\0" * 9,
        gzip.compress(WHOLE[:-1], mtime=0),
        b"\x1f\x8b",
    ],
)
def test_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte .*Replace the file"):
        read_idx(path)


def test_files_that_do_not_belong_together_are_named(tmp_path, arguments, write_mnist):
    write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes((tmp_path / "t10k-labels-idx1-ubyte").read_bytes())
    with pytest.raises(UserError, match="train-images-idx3-ubyte holds images"):
        Mnist(**arguments(data_dir=str(tmp_path))).setup()


@pytest.mark.skipif(not (DEBIAN / "fashion-mnist").is_dir(), reason="dataset-fashion-mnist")
def test_the_real_fashion_mnist(arguments):
    data = FashionMnist(**arguments(data_dir=str(DEBIAN), val_size=0))
    data.setup()
    assert data.sizes == {"train": 60000, "val": 0, "test": 10000}
    assert torch.bincount(data.read("train").labels).tolist() == [6000] * 10
    facts = data.preprocessing()
    assert facts["mean"] == pytest.approx([0.2860], abs=5e-5)
    assert facts["std"] == pytest.approx([0.3530], abs=5e-5)
    assert data.class_names[int(data.read("test").labels[0])] == "ankle boot"
