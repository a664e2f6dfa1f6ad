"""Where data are looked for, and what is said when they are not there."""

import os
import signal

import pytest
import torchvision.datasets
import torchvision.datasets.utils

from bitexp.common.errors import UserError
from bitexp.data.images.cifar import Cifar10, Cifar100
from bitexp.data.images.mnist import FashionMnist, Mnist


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """A machine without any data."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("BITEXP_DATA", raising=False)
    monkeypatch.setattr("bitexp.data.images.published.DEBIAN", tmp_path / "debian")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def test_missing_data_say_where_and_how(tmp_path, arguments):
    with pytest.raises(UserError) as caught:
        FashionMnist(**arguments()).locate()
    text = str(caught.value)
    assert text.startswith("Fashion-MNIST was not found.\nLooked for train-images-idx3-ubyte, ")
    for place in (
        "home/.cache/bitexp/fashion-mnist",
        "work/data/FashionMNIST/raw",
        "debian/fashion-mnist",
    ):
        assert f"\n  {tmp_path / place}\n" in text
    for advice in (
        "make data",
        "dataset-fashion-mnist",
        "data.download=true",
        "data.data_dir=FOLDER",
        "data=digits is embedded",
    ):
        assert advice in text


def test_everything_that_needs_the_data_says_so(arguments):
    for use in ("locate", "fingerprint", "setup", "prepare_data", "train_dataloader"):
        with pytest.raises(UserError, match="MNIST was not found"):
            getattr(Mnist(**arguments()), use)()


@pytest.mark.parametrize(
    "place",
    [
        "named/fashion-mnist",
        "home/.cache/bitexp/FashionMNIST/raw",
        "work/data/fashion_mnist",
        "debian/fashion-mnist",
    ],
)
def test_found_in_the_usual_places(tmp_path, arguments, write_mnist, monkeypatch, place):
    monkeypatch.setenv("BITEXP_DATA", str(tmp_path / "named"))
    write_mnist(tmp_path / place, gz=True)
    assert FashionMnist(**arguments()).locate() == str(tmp_path / place)


def test_a_named_folder_is_the_only_place(tmp_path, arguments, write_mnist):
    write_mnist(tmp_path / "debian" / "mnist")
    write_mnist(tmp_path / "mine")
    assert Mnist(**arguments(data_dir=str(tmp_path / "mine"))).locate() == str(tmp_path / "mine")
    with pytest.raises(UserError, match="MNIST was not found") as caught:
        Mnist(**arguments(data_dir=str(tmp_path / "other"))).locate()
    assert "debian" not in str(caught.value)


def test_an_incomplete_folder_is_passed_over(tmp_path, arguments, write_mnist):
    write_mnist(tmp_path / "home/.cache/bitexp/mnist")
    (tmp_path / "home/.cache/bitexp/mnist/t10k-labels-idx1-ubyte").unlink()
    write_mnist(tmp_path / "work/data/mnist")
    assert Mnist(**arguments()).locate() == str(tmp_path / "work/data/mnist")


def test_mnist_is_not_taken_for_fashion_mnist(tmp_path, arguments, write_mnist):
    write_mnist(tmp_path / "work/data/MNIST/raw")
    assert Mnist(**arguments()).locate()
    with pytest.raises(UserError, match="Fashion-MNIST was not found"):
        FashionMnist(**arguments()).locate()


def test_downloads_when_asked(tmp_path, arguments, write_mnist, monkeypatch):
    def download(root, download):
        assert download
        write_mnist(root / "FashionMNIST" / "raw")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", download)
    data = FashionMnist(**arguments(download=True))
    assert data.locate() == str(tmp_path / "home/.cache/bitexp/FashionMNIST/raw")
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", None)  # not a second time
    assert FashionMnist(**arguments(download=True)).locate() == data.locate()


def test_a_download_that_is_killed_leaves_no_half_of_a_file(
    tmp_path, arguments, write_mnist, monkeypatch, start
):
    root = tmp_path / "home/.cache/bitexp"

    def killed(root, download):
        write_mnist(root / "MNIST" / "raw")
        os.truncate(root / "MNIST" / "raw" / "train-images-idx3-ubyte", 100)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(torchvision.datasets, "MNIST", killed)
    assert start(lambda: Mnist(**arguments(download=True)).locate()).wait().code == -signal.SIGKILL
    assert not (root / "MNIST").exists()
    monkeypatch.setattr(torchvision.datasets, "MNIST", lambda root, download: write_mnist(root / "MNIST/raw"))
    Mnist(**arguments(download=True)).setup()
    assert not list(root.glob(".*.part"))


def test_a_file_edited_in_place_is_read_again(tmp_path, arguments, write_mnist):
    write_mnist(tmp_path / "mine")
    first = Mnist(**arguments(data_dir=str(tmp_path / "mine"))).fingerprint()
    path = tmp_path / "mine" / "t10k-labels-idx1-ubyte"
    times = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"\x05")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert Mnist(**arguments(data_dir=str(tmp_path / "mine"))).fingerprint() != first


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("Error downloading")])
def test_a_download_that_fails_is_explained(arguments, monkeypatch, error):
    def download(root, download):
        raise error

    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    with pytest.raises(UserError, match=f"MNIST was not found. The download failed: {error}") as caught:
        Mnist(**arguments(download=True)).setup()
    assert caught.value.__cause__ is error
    assert "data=digits" in str(caught.value)


@pytest.mark.parametrize(("kind", "file"), [(Cifar10, "10"), (Cifar100, "100")])
def test_cifar_downloads_its_archive_and_unpickles_nothing(tmp_path, arguments, monkeypatch, kind, file):
    asked = []
    monkeypatch.setattr(
        torchvision.datasets.utils,
        "download_and_extract_archive",
        lambda url, root, filename, md5: asked.append((url, root, filename, len(md5))),
    )
    with pytest.raises(UserError, match="The download is incomplete"):
        kind(**arguments(download=True, data_dir=str(tmp_path))).locate()
    name = f"cifar-{file}-python.tar.gz"
    assert asked == [
        (f"https://www.cs.toronto.edu/~kriz/{name}", str(tmp_path / f".{kind.folders[0]}.part"), name, 32)
    ]
