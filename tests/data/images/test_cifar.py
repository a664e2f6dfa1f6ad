"""The CIFAR reader against torchvision's, on files as Python 2 wrote them, and on hostile ones."""

import os
import pickle

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from bitexp.common.errors import UserError
from bitexp.data.images.cifar import Cifar10, Cifar100, read_batch


def text(value):
    return b"U" + bytes([len(value)]) + value.encode()


def integers(values):
    return b"](" + b"".join(b"K" + bytes([value]) for value in values) + b"e"


def python2_array(rows):
    """A uint8 matrix in protocol 2 as the numpy of Python 2 pickled it."""
    sizes = b"".join(b"M" + size.to_bytes(2, "little") for size in rows.shape)
    dtype = b"cnumpy\ndtype\n" + text("u1") + b"K\0K\1\x87R(K\3" + text("|")
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    content = b"T" + rows.size.to_bytes(4, "little") + rows.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + text("b") + b"\x87R"
    return array + b"(K\1" + sizes + b"\x86" + dtype + b"\x89" + content + b"tb"


def python2(**entries):
    return b"\x80\2}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u."


@pytest.fixture
def cifar(tmp_path):
    """Both data sets with 30 images per file, under the names torchvision gives them."""
    draw = np.random.default_rng(0)

    def rows(high):
        pixels = draw.integers(0, 256, (30, 3072), dtype=np.uint8)
        return python2_array(pixels), integers(draw.integers(0, high, 30).tolist())

    ten, hundred = tmp_path / "cifar-10-batches-py", tmp_path / "cifar-100-python"
    ten.mkdir()
    hundred.mkdir()
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        data, labels = rows(10)
        (ten / name).write_bytes(python2(batch_label=text(name), labels=labels, data=data))
    for name in ("train", "test"):
        data, labels = rows(100)
        coarse = integers([0] * 30)
        (hundred / name).write_bytes(python2(data=data, fine_labels=labels, coarse_labels=coarse))
    for path, key, count in (
        (ten / "batches.meta", "label_names", 10),
        (hundred / "meta", "fine_label_names", 100),
    ):
        path.write_bytes(pickle.dumps({key: [f"class {n}" for n in range(count)]}, protocol=2))
    return tmp_path


def unchecked(kind):
    """torchvision's class without its MD5 sums."""
    return type(
        kind.__name__,
        (kind,),
        {
            "train_list": [[name, None] for name, _ in kind.train_list],
            "test_list": [[name, None] for name, _ in kind.test_list],
            "meta": {**kind.meta, "md5": None},
        },
    )


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")  # torchvision's plain pickle
@pytest.mark.parametrize(("ours", "theirs"), [(Cifar10, CIFAR10), (Cifar100, CIFAR100)])
def test_reads_what_torchvision_reads(cifar, arguments, ours, theirs):
    data = ours(**arguments(data_dir=str(cifar), val_size=10))
    for part in ("train", "test"):
        expected = unchecked(theirs)(cifar, train=part == "train")
        got = data.read(part)
        assert torch.equal(got.images.permute(0, 2, 3, 1), torch.from_numpy(expected.data))
        assert got.labels.tolist() == expected.targets
    assert data.class_names == expected.classes
    data.setup()
    assert data.sizes["val"] == 10


def test_reads_files_of_a_new_numpy(tmp_path):
    path = tmp_path / "batch"
    rows = np.arange(12, dtype=np.uint8).reshape(3, 4)
    path.write_bytes(pickle.dumps({"data": rows}, protocol=4))
    assert read_batch(path)["data"].tolist() == rows.tolist()


class Hostile:
    def __init__(self, call, *values):
        self.call, self.values = call, values

    def __reduce__(self):
        return self.call, self.values


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "call",
    [
        (os.mkdir, "proof"),
        (eval, "__import__('os').mkdir('proof')"),
        (getattr, "proof", "title"),
        (np.load, "proof"),
    ],
)
def test_a_hostile_file_runs_nothing(tmp_path, monkeypatch, protocol, call):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({"data": Hostile(*call)}, protocol=protocol))
    with pytest.raises(UserError, match=r"data_batch_1 is not a CIFAR file \(it asks for "):
        read_batch(path)
    assert not (tmp_path / "proof").exists()


GOOD = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        python2(data=python2_array(GOOD), labels=integers([0, 1]))[:-3000],
        pickle.dumps([1, 2]),
        pickle.dumps({"labels": [0, 1]}),
        pickle.dumps({"data": GOOD}),
        pickle.dumps({"data": GOOD, "labels": [0, "1"]}),
        pickle.dumps({"data": GOOD, "labels": [0, 10]}),
        pickle.dumps({"data": GOOD, "labels": [0]}),
        pickle.dumps({"data": GOOD[:, :-1], "labels": [0, 1]}),
        pickle.dumps({"data": GOOD.astype(np.float32), "labels": [0, 1]}),
        pickle.dumps({"data": GOOD.astype(object), "labels": [0, 1]}),
    ],
)
def test_damaged_files_are_named(cifar, arguments, content):
    (cifar / "cifar-10-batches-py" / "data_batch_3").write_bytes(content)
    with pytest.raises(UserError, match="data_batch_3"):
        Cifar10(**arguments(data_dir=str(cifar))).setup()


def test_names_of_classes_must_be_all_there(cifar, arguments):
    path = cifar / "cifar-10-batches-py" / "batches.meta"
    path.write_bytes(pickle.dumps({"label_names": ["cat", "dog"]}))
    with pytest.raises(UserError, match=r"batches\.meta does not name 10 classes"):
        Cifar10(**arguments(data_dir=str(cifar))).setup()
