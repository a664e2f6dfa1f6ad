"""What every text does: windows of tokens, their order, their limits; and the standard library as one."""

import json
import pickle
import platform
from itertools import chain, pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitexp.common.errors import UserError
from bitexp.data import DATA
from bitexp.data.text import stdlib
from bitexp.data.text.base import TextData, Windows
from bitexp.data.text.tokenizers import load_tokenizer, train_bpe

POEMS = [f"poem {number}: grüße 😀, {number**3} times\n" for number in range(60)]


class Written(TextData):
    """Text in memory that counts how often it is read."""

    title = "poems"

    def __init__(self, texts, **options):
        super().__init__(**options)
        self.texts, self.reads = {"train": texts, "val": None, "test": None}, 0

    def locate(self):
        return "memory"

    def documents(self, part):
        return None if self.texts[part] is None else self.read(part)

    def read(self, part):
        self.reads += part == "train"
        yield from self.texts[part]

    def content_key(self):
        return json.dumps(self.texts)


@pytest.fixture
def make(compose_config):
    """Short windows of poems, with the other arguments as stdlib.yaml has them."""

    def build(texts=POEMS, **changes):
        options = compose_config("data=stdlib")["data"]
        del options["name"]
        return Written(texts, **{**options, "seed": 1, "context": 8, "batch_size": 4, **changes})

    return build


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Nothing has been read yet."""
    monkeypatch.setenv("BITEXP_CACHE", str(tmp_path / "cache"))


def windows(count, context, seed=None):
    """Windows of a part whose tokens are their own places."""
    tokens = np.arange(count, dtype=np.int32)
    corpus = SimpleNamespace(about={"tokens": {"train": count}}, tokens=lambda part: tokens)
    return Windows(corpus, "train", context, seed)


def batches_of(loader):
    return [(inputs.tolist(), targets.tolist()) for inputs, targets in loader]


lengths = {"context": st.integers(1, 20), "more": st.integers(1, 200)}


@given(**lengths, seed=st.none() | st.integers(0, 5), epoch=st.integers(0, 50))
def test_targets_are_the_tokens_that_follow(context, more, seed, epoch):
    cut = windows(context + more, context, seed)
    inputs, targets = cut[epoch, list(range(len(cut)))]
    assert inputs.shape == targets.shape == (len(cut), context)
    assert (inputs.dtype, targets.dtype) == (torch.int64, torch.int64)
    assert torch.equal(targets, inputs + 1)
    begin = int(inputs[0, 0])  # and from there on, everything up to less than one window
    assert inputs.flatten().tolist() == list(range(begin, begin + len(cut) * context))
    assert 0 <= begin < context
    assert 0 <= context + more - 1 - int(targets[-1, -1]) < 2 * context


@given(**lengths)
def test_evaluation_covers_everything_once(context, more):
    cut = windows(context + more, context)
    inputs, targets = cut[7, list(range(len(cut)))]
    assert inputs.flatten().tolist() == list(range(len(cut) * context))  # at any epoch
    assert 0 <= context + more - 1 - int(targets[-1, -1]) < context


def test_epochs_begin_at_every_place():
    def begins(seed):
        cut = windows(50, 5, seed)
        return [int(cut[epoch, [0]][0][0, 0]) for epoch in range(60)]

    assert set(begins(1)) == set(range(5))
    assert begins(1) == begins(1) != begins(2)


def test_any_windows_may_be_asked_for():
    cut = windows(50, 5)
    inputs, _ = cut[0, [3, 0]]
    assert inputs.tolist() == [[15, 16, 17, 18, 19], [0, 1, 2, 3, 4]]


def test_workers_get_no_copy_of_the_tokens(make):
    data = make(POEMS * 30, context=16)
    cut = data.train_dataloader().dataset
    before = batches = cut[1, [0, 5]]
    packed = pickle.dumps(cut)
    assert len(packed) < 2000 < len(cut.tokens)
    assert all(map(torch.equal, pickle.loads(packed)[1, [0, 5]], before))
    assert batches[0].shape == (2, 16)


def test_windows_hold_the_text(make):
    data = make()
    tokens = data.corpus.tokens("test").astype(np.int64)
    seen = torch.cat([inputs for inputs, _ in data.test_dataloader()]).flatten().numpy()
    assert np.array_equal(seen, tokens[: len(seen)])
    assert (
        bytes(seen.astype(np.uint8))
        .decode(errors="ignore")
        .startswith("poem 9: grüße 😀, 729 times\n\0poem 19")
    )
    assert data.sizes == {
        part: (len(data.corpus.tokens(part)) - 1) // 8 - (part == "train") for part in data.sizes
    }


def test_an_epoch_has_each_window_once(make):
    data = make()
    plan = data.train_dataloader().sampler.plan(0)
    assert all(len(batch) == 4 for batch in plan)
    numbers = list(chain(*plan))
    assert len(set(numbers)) == len(numbers) == data.sizes["train"] // 4 * 4
    assert numbers != sorted(numbers)


@pytest.mark.parametrize("looked_at", [1, 3, 7, 16, 999, None])
def test_validation_looks_at_windows_evenly_spread(make, looked_at):
    data = make(val_windows=looked_at, val_size=0.3, eval_batch_size=5)
    plan = data.val_dataloader().sampler.plan(0)
    total = (len(data.corpus.tokens("val")) - 1) // 8
    numbers = list(chain(*plan))
    assert len(numbers) == data.sizes["val"] == min(total, looked_at or total)
    gaps = {after - before for before, after in pairwise([*numbers, total])}
    assert numbers[0] == 0
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("workers", [0, 2])
def test_the_order_continues_at_any_batch(make, workers):
    whole = make().train_dataloader()
    whole.sampler.set_epoch(2)
    expected = batches_of(whole)
    stopped = make(workers=workers).train_dataloader()
    stopped.sampler.set_epoch(2)
    going = iter(stopped)
    first = batches_of(next(going) for _ in range(5))
    continued = make(workers=workers).train_dataloader()
    continued.load_state_dict(stopped.state_dict())
    assert first + batches_of(continued) == expected
    whole.sampler.set_epoch(3)
    assert batches_of(whole) != expected


def test_the_seed_orders_and_shifts_but_holds_out_the_same(make):
    first, again, other = (make(seed=seed) for seed in (1, 1, 2))
    assert batches_of(first.train_dataloader()) == batches_of(again.train_dataloader())
    assert batches_of(first.train_dataloader()) != batches_of(other.train_dataloader())
    for name in ("val_dataloader", "test_dataloader"):
        assert batches_of(getattr(first, name)()) == batches_of(getattr(other, name)())


@pytest.mark.parametrize(("limit", "count"), [(3, 3), (999, None), (1.0, None)])
def test_processes_share_the_windows_of_a_limited_epoch(make, limit, count):
    seen = {"train": [], "val": []}
    for rank in range(2):
        data = make()
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(
            global_rank=rank, world_size=2, strategy=strategy, limit_train_batches=limit
        )
        training = data.train_dataloader()
        assert len(training) == (count or data.sizes["train"] // 8)
        epochs = 2 if count else 1  # an epoch of three batches goes on where the first one ended
        seen["train"] += chain(*(training.sampler.plan(epoch) for epoch in range(epochs)))
        seen["val"] += data.val_dataloader().sampler.plan(0)
    numbers = list(chain(*seen["train"]))
    assert len(set(numbers)) == len(numbers)
    assert sorted(chain(*seen["val"])) == list(range(data.sizes["val"]))


def test_facts_need_no_text(make, monkeypatch, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(train_bpe(POEMS, 300).to_json())
    monkeypatch.setattr(Written, "documents", None)
    monkeypatch.setattr(Written, "content_key", None)
    chosen = [{}, {"tokenizer": "bpe", "vocabulary": 400}, {"tokenizer": str(path)}]
    for options, size in zip(chosen, (256, 400, 300), strict=True):
        data = make(**options, context=5)
        assert data.facts == {"vocabulary": size, "context": 5}
        assert (data.example().shape, data.example().dtype) == ((2, 5), torch.int64)


def test_tokens_are_kept_for_the_next_run(make, own_cache):
    first, again = make(), make(seed=2, context=5, batch_size=9, val_windows=1)
    assert first.fingerprint() == again.fingerprint()
    assert (first.reads, again.reads) == (1, 0)
    bpe = make(tokenizer="bpe", vocabulary=300)
    others = [
        bpe,
        make(tokenizer="bpe", vocabulary=301),
        make(val_size=0.2),
        make(test_size=0.2),
        make(POEMS[1:]),
    ]
    assert len({first.fingerprint(), *(other.fingerprint() for other in others)}) == 6
    assert [other.reads for other in others] == [2, 2, 1, 1, 1]  # once more to train byte pairs


def test_tokens_of_a_file_are_those_of_the_tokenizer_in_it(make, own_cache, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(train_bpe(POEMS, 300).to_json())
    first = make(tokenizer=str(path))
    assert int(first.corpus.tokens("train").max()) < 300
    assert first.bytes_per_token("train") > 1.5
    moved = make(tokenizer=str(path.rename(tmp_path / "moved.json")))
    assert (moved.fingerprint(), moved.reads) == (first.fingerprint(), 0)
    path.write_text(train_bpe(POEMS, 280).to_json())
    assert make(tokenizer=str(path)).fingerprint() != first.fingerprint()


def test_damaged_tokens_are_made_again_and_that_is_said(make, own_cache):
    first = make()
    assert "damaged" not in first.remarks()
    path = first.corpus.folder / "train.tokens"
    path.write_bytes(bytes(path.stat().st_size))
    again = make()
    assert again.remarks() == f"{first.remarks()}; its kept tokens were damaged and have been made again"
    assert again.fingerprint() == first.fingerprint()
    assert np.array_equal(again.corpus.tokens("train"), first.corpus.tokens("train"))
    assert make().remarks() == first.remarks()


@pytest.mark.parametrize("options", [{}, {"tokenizer": "bpe", "vocabulary": 300}])
def test_a_run_is_told_what_the_text_is(make, options):
    data = make(**options)
    told = data.preprocessing()
    assert json.loads(json.dumps(told)) == told
    assert (told["corpus"], sum(told["documents"].values())) == ("poems", 60)
    tokenizer = load_tokenizer(told["tokenizer"], "a run")
    begin = data.corpus.tokens("train")[:12].tolist()
    assert POEMS[0].startswith("".join(tokenizer.stream(begin)).rstrip("\ufffd"))
    counts = " / ".join(f"{len(data.corpus.tokens(part)):,}" for part in ("train", "val", "test"))
    assert data.remarks() == f"poems; {counts} tokens ({data.tokenizer}), context 8"


def test_nothing_held_out_means_no_validation(make):
    data = make(val_size=0)
    assert data.val_dataloader() == []
    assert data.sizes["val"] == 0


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (
            POEMS,
            {"context": 200},
            "the val part of poems has 71 tokens, and data.context=200 needs at least 201",
        ),
        (
            POEMS[:1],
            {},
            "the val part of poems has 2 tokens, and data.context=8 needs at least 9; use a smaller",
        ),
        ([], {}, "the train part of poems is empty; use more text"),
        (["", ""], {}, "the train part of poems is empty; use more text"),
        (
            POEMS,
            {"test_size": 0},
            "the test part of poems is empty; use more text, or a larger data.test_size",
        ),
        (
            POEMS,
            {"val_size": 0.01},
            "the val part of poems is empty; use more text, or a larger data.val_size",
        ),
    ],
)
def test_too_little_text_is_told(make, texts, options, message):
    with pytest.raises(UserError) as caught:
        make(texts, **options).setup()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary": 300}, "vocabulary=300 does not go with tokenizer=bytes"),
        (
            {"tokenizer": "words.json", "vocabulary": 300},
            "vocabulary=300 does not go with tokenizer=words.json",
        ),
        ({"tokenizer": "bpe"}, "vocabulary=None does not go with tokenizer=bpe.*data.vocabulary=8000"),
        ({"tokenizer": "bpe", "vocabulary": 256}, "vocabulary=256 must be at least 257"),
        ({"val_size": 1.0}, "val_size=1.0 must be a fraction from 0.0 to below 1.0"),
        ({"val_size": -0.1}, "val_size=-0.1 must be a fraction"),
        ({"test_size": 2}, "test_size=2 must be a fraction"),
        ({"test_size": float("nan")}, "test_size=nan must be a fraction"),
        ({"context": 0}, "context=0 must be at least 1"),
        ({"val_windows": 0}, "val_windows=0 must be at least 1"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    ],
)
def test_what_is_out_of_range_is_refused(make, changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize("ask", [lambda data: data.facts, lambda data: data.setup()])
def test_an_unknown_tokenizer_is_told(make, ask):
    with pytest.raises(UserError, match=r"the tokenizer byte cannot be read: .* Did you mean 'bytes'"):
        ask(make(tokenizer="byte"))


def test_the_standard_library_is_a_text(compose_config, monkeypatch):
    options = compose_config("data=stdlib")["data"]
    data = DATA.get(options.pop("name"))(**options, seed=1)
    data.prepare_data()
    data.setup()
    assert data.locate() == str(Path(json.__file__).parents[1])
    assert data.preprocessing()["corpus"] == f"Python standard library {platform.python_version()}"
    assert data.sizes["train"] > 20_000
    assert data.sizes["val"] == 400
    assert data.bytes_per_token("test") == 1
    held = np.array([len(data.corpus.tokens(part)) for part in ("val", "test")])
    assert held / len(data.corpus.tokens("train")) == pytest.approx([0.05, 0.1], rel=0.5)
    monkeypatch.setattr(stdlib, "standard_library", lambda: [Path("this.py")])
    with pytest.raises(UserError, match=r"none \(1 files found; .*Use data=text"):
        data.locate()
