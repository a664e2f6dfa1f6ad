"""A user's own images: layouts, decoding in workers, damaged files."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from bitexp.common.errors import UserError
from bitexp.data.images.folder import ImageFolder
from bitexp.data.images.on_disk import ImagesOnDisk


@pytest.fixture
def folder(arguments):
    """A data set of 8 x 8 images under a folder."""

    def build(root, **changes):
        sizes = {"test_size": 0.25, "size": 8, "channels": 3, "batch_size": 4}
        return ImageFolder(**arguments(**{"data_dir": str(root), **sizes, **changes}))

    return build


def paint(path, shade, size=(12, 10), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    gradient = Image.radial_gradient("L").resize(size).point(lambda value: (value + shade) % 256)
    gradient.convert(mode).save(path)


def pets(root, count=8):
    for number in range(count):
        paint(root / "cat" / f"{number}.png", number)
        paint(root / "dog" / f"{number}.PNG", 100 + number)
        (root / "dog" / "notes.txt").write_text("no image")


def test_one_folder_is_split(tmp_path, folder):
    pets(tmp_path)
    data = folder(tmp_path, val_size=0.25)
    data.setup()
    assert (data.shape, data.classes, data.class_names) == ((3, 8, 8), 2, ["cat", "dog"])
    assert data.sizes == {"train": 9, "val": 3, "test": 4}
    test = set(data.read("test").names)
    assert not test & set(data.read("train").names)
    assert set(folder(tmp_path, split_seed=5).read("test").names) == test  # whatever the seeds
    assert torch.bincount(data.read("test").labels).tolist() == [2, 2]


def test_folders_of_parts_are_taken_as_they_are(tmp_path, folder):
    for part, count in (("train", 6), ("val", 2), ("test", 3)):
        pets(tmp_path / part, count)
    data = folder(tmp_path)
    data.setup()
    assert data.sizes == {"train": 12, "val": 4, "test": 6}
    assert data.class_names == ["cat", "dog"]
    for loader, count in ((data.val_dataloader(), 4), (data.test_dataloader(), 6)):
        assert sum(len(labels) for _, labels in loader) == count


def test_files_that_are_not_taken_for_images_are_told(tmp_path, folder):
    pets(tmp_path / "plain")
    (tmp_path / "plain" / "dog" / "notes.txt").unlink()
    (tmp_path / "plain" / "dog" / ".DS_Store").touch()
    assert folder(tmp_path / "plain").remarks() == ""
    for part in ("train", "test"):
        pets(tmp_path / part)
        for name in ("1.HEIC", "2.heic", "README"):
            (tmp_path / part / "cat" / name).touch()
    expected = "files left out: 2 without ending, 4 .heic, 2 .txt"
    assert folder(tmp_path).remarks() == expected
    assert folder(tmp_path / "test").remarks() == "files left out: 1 without ending, 2 .heic, 1 .txt"


def test_hidden_images_and_empty_folders_are_left_out_and_told(tmp_path, folder):
    pets(tmp_path)
    (tmp_path / "dog" / "notes.txt").unlink()
    (tmp_path / "cat" / "._0.png").write_bytes(b"of macOS")
    (tmp_path / "bird").mkdir()
    data = folder(tmp_path)
    assert (data.classes, data.class_names) == (2, ["cat", "dog"])
    assert len(data.read("train").names) + len(data.read("test").names) == 16
    assert data.remarks() == "hidden files left out: 1; folders without images left out: bird"


def test_a_single_class_is_a_sentence(tmp_path, folder):
    paint(tmp_path / "cat" / "0.png", 0)
    (tmp_path / "dog").mkdir()
    with pytest.raises(UserError, match="are in one folder, 'cat', and a single class leaves nothing"):
        folder(tmp_path).locate()


def test_train_may_be_a_class_of_its_own(tmp_path, folder):
    paint(tmp_path / "train" / "0.png", 0)
    paint(tmp_path / "plane" / "0.png", 0)
    paint(tmp_path / ".ipynb_checkpoints" / "0.png", 0)
    assert folder(tmp_path).class_names == ["plane", "train"]


@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (3, "L"), (1, "RGB"), (3, "RGBA"), (3, "P")])
def test_images_are_resized_and_cut_as_torchvision_does(tmp_path, channels, mode):
    path = tmp_path / "cat.png"
    paint(path, 7, size=(31, 17), mode=mode)
    labels = torch.tensor([0])
    got = ImagesOnDisk(tmp_path, np.array(["cat.png"]), labels, channels, 8).read([0])
    same = v2.Compose([v2.Resize(8), v2.CenterCrop(8), v2.PILToTensor()])
    with Image.open(path) as image:
        expected = same(image.convert("RGB" if channels == 3 else "L"))
    assert got.dtype == torch.uint8
    assert torch.equal(got[0], expected)


@pytest.mark.parametrize("parts", [False, True])
def test_a_limited_part_holds_every_class_in_its_share(tmp_path, folder, parts):
    for number in range(40):
        paint(tmp_path / "train" / "ant" / f"{number}.png", number)
    for number in range(20):
        paint(tmp_path / "train" / "bee" / f"{number}.png", number)
        paint(tmp_path / "val" / "ant" / f"{number}.png", number)
    data_dir, held = (tmp_path, 20) if parts else (tmp_path / "train", 6)

    def training(**changes):
        data = folder(data_dir, **{"val_size": 6, "test_size": 9, **changes})
        data.setup()
        assert data.sizes["val"] == held
        chosen = data._split[0]
        return data._train.names[chosen.numpy()].tolist(), data._train.labels[chosen]

    if parts:
        paint(tmp_path / "test" / "ant" / "0.png", 0)
    everything = training()[0]
    names, labels = training(limit=15)
    assert torch.bincount(labels).tolist() == [10, 5]
    assert names == sorted(names)
    assert set(names) < set(everything)
    assert training(limit=15, seed=5)[0] == names  # of the run
    assert training(limit=15, split_seed=5)[0] != names
    for limit in (len(everything), 1000):
        assert training(limit=limit)[0] == everything


def test_workers_change_nothing(tmp_path, folder):
    pets(tmp_path)
    augment = {"crop": 2, "flip": True}
    alone, helped = (
        [
            (images.tolist(), labels.tolist())
            for images, labels in folder(tmp_path, workers=workers, augment=augment).train_dataloader()
        ]
        for workers in (0, 2)
    )
    assert alone == helped


def test_statistics_are_those_of_the_training_images(tmp_path, folder):
    pets(tmp_path)
    data = folder(tmp_path, val_size=2)
    batches = [images for images, _ in folder(tmp_path, val_size=2, batch_size=10).train_dataloader()]
    assert data.preprocessing()["size"] == [8, 8]
    assert torch.cat(batches).mean((0, 2, 3)).abs().max() < 1e-5


def test_a_damaged_image_is_named(tmp_path, folder):
    pets(tmp_path)
    data = folder(tmp_path, val_size=0)
    data.setup()
    broken = tmp_path / data.read("train").names[5]
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(UserError) as caught:
        list(data.train_dataloader())
    assert str(caught.value).startswith(f"{broken} cannot be decoded (")


@pytest.mark.parametrize("parts", [("train",), ("val",), ("test",), ("train", "test")])
def test_damaged_images_of_all_parts_are_told_before_training(tmp_path, folder, parts):
    for each in ("train", "val", "test"):
        pets(tmp_path / each)
    folder(tmp_path).fingerprint()
    broken = [tmp_path / part / name for part in parts for name in ("cat/3.png", "dog/5.PNG")]
    for path in broken:
        content = bytearray(path.read_bytes())
        content[60] ^= 1  # as long as before
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        folder(tmp_path).fingerprint()
    lines = str(caught.value).splitlines()
    assert [line.split(" cannot be decoded (")[0] for line in lines] == [str(path) for path in broken]


def test_the_fingerprint_sees_names_and_contents(tmp_path, folder):
    pets(tmp_path)
    prints = [folder(tmp_path).fingerprint(), folder(tmp_path).fingerprint()]
    (tmp_path / "cat" / "0.png").rename(tmp_path / "cat" / "9.png")
    prints.append(folder(tmp_path).fingerprint())
    paint(tmp_path / "cat" / "9.png", 0, size=(13, 10))
    prints.append(folder(tmp_path).fingerprint())
    path = tmp_path / "dog" / "4.PNG"
    before, times = path.read_bytes(), path.stat()
    for shade in range(256):  # another image of the same size, under the old times
        paint(path, shade)
        if path.stat().st_size == len(before) and path.read_bytes() != before:
            break
    assert len(path.read_bytes()) == len(before)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    prints.append(folder(tmp_path).fingerprint())
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4
    copy = shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name} elsewhere")
    assert folder(copy).fingerprint() == prints[-1]


def test_missing_images_say_what_is_expected(tmp_path, folder):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"No images in folders of {root}") as caught:
            folder(root).locate()
        assert "train/CLASS/*.png" in str(caught.value)
        assert "data=digits is embedded" in str(caught.value)
    with pytest.raises(UserError, match=r"needs the folder of your images: data\.data_dir=FOLDER"):
        folder(tmp_path, data_dir=None).locate()
    with pytest.raises(UserError, match="nothing to download"):
        folder(tmp_path, download=True).locate()


def test_contradictions_are_refused(tmp_path, folder):
    pets(tmp_path)
    with pytest.raises(UserError, match=r"no folder 'test': set data.test_size"):
        folder(tmp_path, test_size=0).setup()
    with pytest.raises(ValueError, match="size=0 must be at least 1"):
        folder(tmp_path, size=0)
    pets(tmp_path / "parts" / "train")
    paint(tmp_path / "parts" / "val" / "bird" / "0.png", 0)
    with pytest.raises(UserError, match="bird is a class that the training images do not have"):
        folder(tmp_path / "parts").setup()
    (tmp_path / "parts" / "val" / "bird" / "0.png").unlink()
    (tmp_path / "parts" / "val" / "bird").rename(tmp_path / "parts" / "val" / "cat")
    with pytest.raises(UserError, match="val holds no images"):
        folder(tmp_path / "parts").setup()
