"""What every data set does, seen at the digits: splits, seeds, limits, facts, ranks."""

import json
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from sklearn.datasets import load_digits

from bitexp.common.errors import UserError
from bitexp.data import DATA
from bitexp.data.images.digits import TEST_IMAGES, TEST_SEED, Digits, _parts
from bitexp.data.images.split import stratified


def indices(data):
    """Training and validation indices, by way of the loaders' plans."""
    training, _, validation = data._split
    return training.tolist(), validation.tolist()


def test_digits_are_those_of_scikit_learn():
    images, labels = (torch.from_numpy(array) for array in (load_digits().images, load_digits().target))
    for part, chosen in zip(("train", "test"), stratified(labels, TEST_IMAGES, TEST_SEED), strict=True):
        assert torch.equal(_parts()[part].images.squeeze(1), images[chosen].to(torch.uint8))
        assert torch.equal(_parts()[part].labels, labels[chosen])


def test_digits_are_cut_once_and_for_all(arguments):
    data = Digits(**arguments())
    data.setup()
    assert data.sizes == {"train": 1293, "val": 144, "test": 360}
    assert (data.shape, data.classes) == ((1, 8, 8), 10)
    # where this changes, the runs of every user become other runs
    assert data.fingerprint() == "40df3e32386f8162994a85b354389450"


def test_the_parts_are_disjoint_and_stratified(arguments):
    data = Digits(**arguments(val_size=0.2))
    training, validation = indices(data)
    assert sorted(training + validation) == list(range(1437))
    everything = data.read("train").labels
    expected = torch.bincount(everything) * len(validation) / 1437
    assert (torch.bincount(everything[validation]) - expected).abs().max() < 1
    test = data.read("test")
    assert (torch.bincount(test.labels) - torch.bincount(everything) * 360 / 1437).abs().max() < 1.3


def test_the_seed_of_a_run_moves_no_image(arguments):
    splits = [
        indices(Digits(**arguments(seed=seed, split_seed=split))) for seed, split in ((1, 0), (2, 0), (1, 3))
    ]
    assert splits[0] == splits[1] != splits[2]


def test_the_seed_orders_and_augments(arguments):
    augment = {"crop": 1, "flip": False}
    first, again, other = (
        next(iter(Digits(**arguments(seed=seed, augment=augment)).train_dataloader()))[0]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_limit_leaves_the_validation_part_alone(arguments):
    whole, limited = indices(Digits(**arguments())), indices(Digits(**arguments(limit=100)))
    assert limited == (whole[0][:100], whole[1])


def test_the_first_images_of_a_published_data_set_are_of_all_classes(arguments):
    data = Digits(**arguments(limit=200))  # published figures were taken from the first so many
    counts = torch.bincount(data.read("train").labels[data._split[0]], minlength=10)
    assert counts.min() >= 10


def test_training_images_are_normalized_by_themselves(arguments):
    data = Digits(**arguments(limit=128))
    batches = torch.cat([images for images, _ in data.train_dataloader()])
    assert batches.shape == (128, 1, 8, 8)
    assert float(batches.mean()) == pytest.approx(0, abs=1e-6)
    assert float(batches.std(correction=0)) == pytest.approx(1, abs=1e-6)
    plain = next(iter(Digits(**arguments(normalize=False)).val_dataloader()))[0]
    assert (plain.min(), plain.max()) == (0, 1)


def test_evaluation_is_always_the_same(arguments):
    first, other = (Digits(**arguments(seed=seed, eval_batch_size=100)) for seed in (1, 2))
    for name in ("val_dataloader", "test_dataloader"):
        for one, two in zip(getattr(first, name)(), getattr(other, name)(), strict=True):
            assert torch.equal(one[0], two[0])
            assert torch.equal(one[1], two[1])
    assert [len(labels) for _, labels in first.test_dataloader()] == [90] * 4


def test_nothing_held_out_means_no_validation(arguments):
    data = Digits(**arguments(val_size=0))
    assert data.val_dataloader() == []
    assert data.sizes["train"] == 1437


def test_the_test_part_waits(arguments, monkeypatch):
    asked = []
    read = Digits.read
    monkeypatch.setattr(Digits, "read", lambda self, part: asked.append(part) or read(self, part))
    data = Digits(**arguments())
    data.prepare_data()
    data.setup("fit")
    list(data.train_dataloader())
    list(data.val_dataloader())
    assert "test" not in asked


def test_facts_for_other_programs(arguments):
    facts = Digits(**arguments()).preprocessing()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["class_names"] == list("0123456789")
    assert (facts["size"], facts["channels"], facts["divide_by"]) == ([8, 8], 1, 16)


def test_processes_share_the_images(arguments):
    seen = {"train": [], "val": []}
    for rank in range(3):
        data = Digits(**arguments(batch_size=50, val_size=100))
        device = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(
            global_rank=rank, world_size=3, strategy=device, limit_train_batches=1.0
        )
        seen["train"] += data.train_dataloader().sampler.plan(0)
        seen["val"] += data.val_dataloader().sampler.plan(0)
    training = list(chain(*seen["train"]))
    assert len(seen["train"]) == 3 * (1337 // 150)
    assert len(set(training)) == len(training)
    assert sorted(chain(*seen["val"])) == indices(data)[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"eval_batch_size": -1}, "eval_batch_size=-1"),
        ({"workers": -1}, "workers=-1 must be at least 0"),
        ({"limit": 0}, "limit=0"),
        ({"split_seed": -1}, "split_seed=-1"),
        ({"val_size": 1.0}, "val_size=1.0 is neither a fraction"),
        ({"augment": {"crop": 9, "flip": False}}, "augment.crop=9"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, changes, message):
    with pytest.raises(ValueError, match=message):
        Digits(**arguments(**changes))


def test_holding_out_everything_is_refused(arguments):
    with pytest.raises(UserError, match="val_size=1437 holds out 1437 of 1437 images"):
        Digits(**arguments(val_size=1437)).setup()


@pytest.mark.parametrize("changes", [{"data_dir": "/data"}, {"download": True}])
def test_digits_are_embedded(arguments, changes):
    with pytest.raises(UserError, match="data=digits is part of scikit-learn"):
        Digits(**arguments(**changes)).locate()


def test_every_file_of_the_folder_is_registered():
    assert {"digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "image_folder"} <= set(DATA.names())
