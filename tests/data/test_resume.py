"""A run that Lightning stops and continues sees the same batches and ends with the same weights."""

import contextlib
import itertools
import random

import pytest
import pytorch_lightning as pl
import torch

from bitexp.data.images.base import ImageData
from bitexp.data.images.batches import ImagesInMemory

COUNT = 70  # 56 to train on: 7 batches of 8


class Numbered(ImageData):
    """Images whose labels are their numbers, so that a batch tells which images it holds."""

    shape = (1, 6, 6)
    classes = COUNT
    title = "numbered"

    def locate(self):
        return "memory"

    def read(self, part):
        draw = torch.Generator().manual_seed(3)
        images = torch.randint(0, 256, (COUNT, 1, 6, 6), generator=draw, dtype=torch.uint8)
        return None if part == "val" else ImagesInMemory(images, torch.arange(COUNT))


class Net(pl.LightningModule):
    """Remembers (epoch, number in it, images, pixels) of every batch it trained on."""

    def __init__(self, seen):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(COUNT, 36, generator=draw) / 6)
        self.seen = seen

    def loss(self, batch):
        return torch.nn.functional.cross_entropy(batch[0].flatten(1) @ self.weight.T, batch[1])

    def training_step(self, batch, index):
        pixels = batch[0].numpy().tobytes()
        self.seen.append((self.trainer.current_epoch, index, tuple(batch[1].tolist()), pixels))
        return self.loss(batch)

    def validation_step(self, batch, index):
        self.log("val/loss", self.loss(batch))

    def on_validation_epoch_end(self):
        self.seen.append((self.trainer.current_epoch, "validated", self.trainer.global_step))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 1e-2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 28)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Killed(Exception):
    pass


class Saver(pl.Callback):
    """Saves a checkpoint at each moment from which Lightning can continue; dies after `life` hooks.

    Not a moment to continue from, in Lightning 2.6: the end of a batch that is the last of its
    epoch, or after which validation is due (it would be left out), or whose gradients wait for
    another batch (they would be lost).
    """

    def __init__(self, path, life=10**9):
        self.path = path
        self.hooks = itertools.count()
        self.life = life

    def live(self):
        if next(self.hooks) == self.life:
            raise Killed

    def save(self, trainer):
        self.live()
        trainer.save_checkpoint(self.path, weights_only=False)
        self.live()

    def on_train_batch_start(self, *_):
        self.live()

    def on_validation_batch_end(self, *_):
        self.live()

    def on_train_batch_end(self, trainer, *_):
        loop = trainer.fit_loop.epoch_loop
        due = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
        if not (trainer.is_last_batch or due or loop._should_accumulate()):
            self.save(trainer)

    def on_validation_end(self, trainer, _):
        if not trainer.fit_loop.epoch_loop._should_accumulate():
            self.save(trainer)

    def on_train_epoch_end(self, trainer, _):
        if trainer.max_steps == -1:  # else Lightning would leave out the next epoch
            self.save(trainer)


@pytest.fixture
def train(arguments):
    """Trains for 4 epochs, from a checkpoint if there is one; returns the weights at the end."""

    def fit(seen, path=None, callbacks=(), workers=0, **options):
        net = Net(seen)
        augment = {"crop": 2, "flip": True}
        values = arguments(batch_size=8, val_size=14, workers=workers, augment=augment)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=4,
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            **options,
        )
        checkpoint = path if path is not None and path.exists() else None
        data = Numbered(**values)
        trainer.fit(net, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        return net.weight.detach()

    return fit


class SaveAt(pl.Callback):
    """Saves a checkpoint at each moment: (epoch, number of a batch or name of a hook)."""

    def __init__(self, folder, moments):
        self.folder, self.moments = folder, moments

    def save(self, trainer, moment):
        if (trainer.current_epoch, moment) in self.moments:
            path = self.folder / f"{trainer.current_epoch} {moment}"
            trainer.save_checkpoint(path, weights_only=False)

    def on_train_batch_end(self, trainer, _module, _output, _batch, index):
        self.save(trainer, index)

    def on_validation_end(self, trainer, _):
        self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer, _):
        self.save(trainer, "epoch")


@pytest.mark.parametrize(
    ("workers", "accumulate", "moments"),
    [
        (0, 1, [(1, 3), (0, 6), (1, 6), (2, "validation"), (1, "epoch")]),
        (2, 2, [(1, 3), (2, 6), (1, "validation")]),
    ],
)
def test_continues_from_any_checkpoint(tmp_path, train, workers, accumulate, moments):
    options = {"workers": workers, "accumulate_grad_batches": accumulate}
    whole = []
    expected = train(whole, callbacks=[SaveAt(tmp_path, moments)], **options)
    batches = [entry for entry in whole if entry[1] != "validated"]
    for epoch, moment in moments:
        rest = []
        weights = train(rest, tmp_path / f"{epoch} {moment}", **options)
        done = 7 * epoch + (moment + 1 if isinstance(moment, int) else 7)
        assert [entry for entry in rest if entry[1] != "validated"] == batches[done:]
        assert torch.equal(weights, expected), (epoch, moment)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 2, "val_check_interval": 4},
        {"max_steps": 25},
        {"check_val_every_n_epoch": 3, "limit_train_batches": 4},
    ],
    ids=str,
)
def test_survives_any_number_of_kills(tmp_path, train, options):
    whole, pieces = [], []
    expected = train(whole, **options)
    draw = random.Random(str(options))
    path = tmp_path / "checkpoint"
    weights = None
    while weights is None:
        with contextlib.suppress(Killed):
            weights = train(pieces, path, [Saver(path, draw.randrange(20, 60))], **options)
    assert torch.equal(weights, expected)
    # what came after the last checkpoint is done again after a kill, and nothing else
    assert set(pieces) == set(whole)
