"""Tokens on disk: which text they are, and that they are there whole or not at all."""

import itertools
import os
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from bitexp.common.errors import UserError
from bitexp.data.text import corpus as module
from bitexp.data.text.corpus import Corpus, check_length, open_corpus, parted
from bitexp.data.text.tokenizers import ByteTokenizer, load_tokenizer, train_bpe

SHARES = {"val": 0.1, "test": 0.2}
POEMS = [f"poem {number}: grüße 😀\n" * (1 + number % 3) for number in range(40)]
shares = st.fixed_dictionaries({"val": st.floats(0, 0.7), "test": st.floats(0, 0.7)})
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


def source(train, val=None, test=None, seen=None):
    """Documents of each part; every time that those to train on are read, `seen` grows by a line."""
    given = {"train": train, "val": val, "test": test}

    def read(part):
        if seen is not None and part == "train":
            with seen.open("a") as file:
                file.write("read\n")
        yield from given[part]

    return lambda part: None if given[part] is None else read(part)


def make(root, documents, tokenizer=lambda texts: ByteTokenizer(), shares=SHARES, title="poems", key="key"):
    return open_corpus(root, key, documents, tokenizer, shares, title)


def texts_of(corpus, part):
    """The documents that the tokens of a part stand for."""
    tokenizer, ids = load_tokenizer(corpus.about["tokenizer"], "corpus.json"), corpus.tokens(part)
    *documents, rest = np.split(ids, np.flatnonzero(ids == tokenizer.end) + 1)
    assert len(rest) == 0  # the last token ends a document
    return ["".join(tokenizer.stream(piece.tolist())) for piece in documents]


def by_part(documents, shares):
    found = {"train": [], "val": [], "test": []}
    for part, text in parted(documents, shares):
        found[part].append(text)
    return found


def close(count, expected):
    return abs(count - expected) < 1 + 1e-9


@given(st.integers(40, 300), shares)
def test_documents_are_held_out_whole_and_evenly(count, shares):
    parts = {text: part for part, text in parted(source(map(str, range(count))), shares)}
    assert list(parts) == [str(number) for number in range(count)]  # each once, in order
    tested = rest = validated = 0
    for number, part in enumerate(parts.values(), start=1):
        tested += part == "test"
        rest += part != "test"
        validated += part == "val"
        assert close(tested, number * shares["test"])  # at every place, not only at the end
        assert close(validated, rest * shares["val"])


@given(st.lists(texts, max_size=19), shares)
def test_few_documents_are_cut_by_position(documents, shares):
    parts = by_part(source(documents), shares)
    pieces = [*parts["train"], *parts["val"], *parts["test"]]
    whole = "".join(documents)
    assert "".join(pieces) == whole
    assert all(pieces)
    edges = set(itertools.accumulate(map(len, pieces)))
    assert set(itertools.accumulate(map(len, filter(None, documents)))) <= edges  # none spans two documents
    sizes = {part: sum(map(len, found)) for part, found in parts.items()}
    assert sizes["test"] == round(len(whole) * shares["test"])
    assert sizes["val"] == round((len(whole) - sizes["test"]) * shares["val"])


@pytest.mark.parametrize("count", [3, 25])
def test_parts_may_have_documents_of_their_own(count):
    train, val, test = ([f"{part}{number}" for number in range(count)] for part in "abc")
    own = by_part(source(train, val, test), SHARES)
    assert own == {"train": train, "val": val, "test": test}
    half = by_part(source(train, val), SHARES)
    alone = by_part(source(train), {"test": SHARES["test"], "val": 0})
    assert half == {**alone, "val": val}


@pytest.mark.parametrize("count", [10, 30])
def test_empty_documents_are_skipped(count):
    full = POEMS[:count]
    gaps = [text for poem in full for text in ("", poem, "")]
    assert by_part(source(gaps, gaps), SHARES) == by_part(source(full, full), SHARES)


@given(st.lists(texts, max_size=50), shares, st.integers(1, 30))
def test_tokens_are_the_documents_in_order(documents, shares, batch):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BATCH", batch)
        corpus = make(Path(folder), source(documents), shares=shares)
        for part, expected in by_part(source(documents), shares).items():
            assert texts_of(corpus, part) == expected
            assert corpus.about["documents"][part] == len(expected)


def test_a_trained_tokenizer_saw_the_training_part_alone(tmp_path):
    seen = []

    def tokenizer(texts):
        seen.extend(texts)
        return train_bpe(seen, 300)

    corpus = make(tmp_path, source(POEMS), tokenizer)
    expected = by_part(source(POEMS), SHARES)
    assert seen == expected["train"]
    assert {part: texts_of(corpus, part) for part in expected} == expected
    assert corpus.tokens("train").dtype == np.uint16
    for part, found in expected.items():
        size = sum(len(text.encode()) + 1 for text in found)
        assert corpus.bytes_per_token(part) == size / len(corpus.tokens(part)) > 1


@pytest.mark.parametrize(
    "tokenizer", [lambda texts: ByteTokenizer(), lambda texts: train_bpe(texts, 300)], ids=["bytes", "bpe"]
)
def test_a_document_ends_once_whatever_it_says(tmp_path, tokenizer):
    documents = [f"{poem}<|endoftext|>\0</s>" for poem in POEMS]
    corpus = make(tmp_path, source(documents), tokenizer)
    end = load_tokenizer(corpus.about["tokenizer"], "corpus.json").end
    for part, count in corpus.about["documents"].items():
        assert np.count_nonzero(corpus.tokens(part) == end) == count > 0


class Wide:
    """A tokenizer of `size` ids that uses the last of them."""

    def __init__(self, size, name="wide"):
        self.size, self.end, self.name = size, size - 1, name

    def encode(self, texts):
        return [np.full(len(text), self.size - 2) for text in texts]

    def to_json(self):
        return self.name


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "int32"), (150_000, "int32")],
)
def test_tokens_are_as_narrow_as_the_vocabulary_allows(tmp_path, size, dtype):
    corpus = make(tmp_path, source(POEMS), lambda texts: Wide(size))
    tokens = corpus.tokens("test")
    assert tokens.dtype == dtype
    assert (tokens.min(), tokens.max()) == (size - 2, size - 1)
    assert (corpus.folder / "test.tokens").stat().st_size == len(tokens) * np.dtype(dtype).itemsize


def test_bytes_are_one_per_token(tmp_path):
    assert make(tmp_path, source(POEMS)).bytes_per_token("train") == 1


def test_a_digest_is_of_tokens_and_tokenizer(tmp_path):
    places = itertools.count()

    def digest(documents, tokenizer=None, **options):
        root = tmp_path / str(next(places))
        return make(root, documents, lambda texts: tokenizer or ByteTokenizer(), **options).digest

    first = digest(source(POEMS))
    assert first == digest(source(POEMS), title="verses", key="other")
    parts = by_part(source(POEMS), SHARES)
    assert first == digest(source(parts["train"], parts["val"], parts["test"]))
    assert first == digest(source(["", *POEMS]))
    others = [
        digest(source([*POEMS[:-1], "another"])),
        digest(source(POEMS), shares={"val": 0.2, "test": 0.2}),
        digest(source(parts["train"], parts["test"], parts["val"])),
        *(digest(source(POEMS), Wide(256, name)) for name in ("wide", "broad")),
    ]
    assert len({first, *others}) == 6


def test_tokens_are_made_once(tmp_path):
    seen = tmp_path / "seen"
    first, again = (make(tmp_path / "root", source(POEMS, seen=seen)) for _ in range(2))
    assert seen.read_text() == "read\n"
    assert (again.folder, again.digest) == (first.folder, first.digest)
    assert np.array_equal(again.tokens("train"), first.tokens("train"))


def test_two_processes_make_tokens_once(tmp_path, start):
    seen, root = tmp_path / "seen", tmp_path / "root"
    news, say = os.pipe()
    wait, let = os.pipe()

    def documents(part):
        if part != "train":
            return None
        os.write(say, b"r")
        os.read(wait, 1)  # the other one has arrived by then
        return source(POEMS, seen=seen)(part)

    def work():
        os.write(say, b"a")
        assert make(root, documents).about["documents"]["train"] == 29

    children = [start(work) for _ in range(2)]
    os.close(say)
    heard = b""
    while (heard.count(b"a") < 2 or b"r" not in heard) and (letter := os.read(news, 1)):
        heard += letter
    os.write(let, b"go, both of you, as often as you ask")
    ends = [child.wait() for child in children]
    for end in (news, wait, let):
        os.close(end)
    assert [end.code for end in ends] == [0, 0], [end.err for end in ends]
    assert seen.read_text() == "read\n"
    assert texts_of(make(root, source([])), "test") == by_part(source(POEMS), SHARES)["test"]


def killing_documents():
    yield from POEMS[:30]
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_the_last_step(monkeypatch):
    replace = os.replace

    def stop(old, new):
        if Path(old).is_dir():
            os.kill(os.getpid(), signal.SIGKILL)
        replace(old, new)

    monkeypatch.setattr(os, "replace", stop)


@pytest.mark.parametrize("moment", ["reading", "renaming"])
def test_killed_in_the_middle_nothing_counts(tmp_path, start, monkeypatch, moment):
    root = tmp_path / "root"
    monkeypatch.setattr(module, "BATCH", 1)  # so that tokens have been written by then

    def work():
        if moment == "renaming":
            kill_at_the_last_step(monkeypatch)
        make(root, source(killing_documents() if moment == "reading" else POEMS))

    assert start(work).wait().code == -signal.SIGKILL
    assert {path.name for path in root.iterdir()} == {"key.part", "key.lock"}
    assert (root / "key.part" / "corpus.json").exists() == (moment == "renaming")
    corpus = make(root, source(POEMS))
    assert {path.name for path in root.iterdir()} == {"key", "key.lock"}
    assert {part: texts_of(corpus, part) for part in ("train", "val", "test")} == by_part(
        source(POEMS), SHARES
    )


def test_what_was_left_of_another_corpus_goes_unless_it_is_being_made(tmp_path):
    for key in ("dead", "alive"):
        (tmp_path / f"{key}.part").mkdir()
        (tmp_path / f"{key}.part" / "train.tokens").write_bytes(b"half")
    with FileLock(tmp_path / "alive.lock"):
        make(tmp_path, source(POEMS))
        assert {path.name for path in tmp_path.glob("*.part")} == {"alive.part"}
    make(tmp_path, source(POEMS), key="another")
    assert not list(tmp_path.glob("*.part"))


def overwrite(path, change):
    """Other content under the old times."""
    before, times = path.read_bytes(), path.stat()
    after = change(before)
    assert after != before
    path.write_bytes(after)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: os.truncate(folder / "val.tokens", 5),
        lambda folder: overwrite(folder / "train.tokens", lambda content: bytes(len(content))),
        lambda folder: overwrite(folder / "test.tokens", lambda content: content[:-1] + b"\x01"),
        lambda folder: overwrite(folder / "val.tokens", lambda content: content[::-1]),
        lambda folder: overwrite(
            folder / "corpus.json", lambda text: text.replace(b'"val": 3,', b'"val": 4,')
        ),
        lambda folder: overwrite(folder / "corpus.json", lambda text: text.replace(b"bytes", b"bites")),
        lambda folder: (folder / "test.tokens").unlink(),
        lambda folder: (folder / "train.tokens").write_bytes(b"more" * 10_000),
        lambda folder: (folder / "corpus.json").write_text("{"),
        lambda folder: (folder / "corpus.json").write_text('{"format": 0}'),
        lambda folder: (folder / "corpus.json").unlink(),
    ],
    ids=[
        "truncated",
        "zeros",
        "bit",
        "order",
        "count",
        "tokenizer",
        "missing",
        "longer",
        "cut",
        "old",
        "gone",
    ],
)
def test_damaged_tokens_are_made_again(tmp_path, request, damage):
    seen = tmp_path / "seen"
    first = make(tmp_path / "root", source(POEMS, seen=seen))
    damage(first.folder)
    corpus = make(tmp_path / "root", source(POEMS, seen=seen))
    assert seen.read_text() == "read\n" * 2
    assert corpus.digest == first.digest
    assert corpus.mended == ("old" not in request.node.callspec.id)
    assert not make(tmp_path / "root", source(POEMS, seen=seen)).mended
    assert {part: texts_of(corpus, part) for part in ("train", "val", "test")} == by_part(
        source(POEMS), SHARES
    )


def failing_documents():
    yield from POEMS[:30]
    raise UserError("the disk is gone")


def failing_tokenizer(texts):
    raise UserError(f"no tokenizer for {next(iter(texts))!r}")


@pytest.mark.parametrize(
    ("documents", "tokenizer"),
    [(failing_documents, lambda texts: ByteTokenizer()), (lambda: POEMS, failing_tokenizer)],
)
def test_an_error_leaves_no_scrap(tmp_path, monkeypatch, documents, tokenizer):
    monkeypatch.setattr(module, "BATCH", 1)
    with pytest.raises(UserError, match=r"the disk is gone|no tokenizer for 'poem 0"):
        make(tmp_path, source(documents()), tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["key.lock"]
    assert len(texts_of(make(tmp_path, source(POEMS)), "train")) == 29


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(1, 30))
def test_every_part_has_room_for_a_window(train, val, test, context):
    counts = {"train": train, "val": val, "test": test}
    corpus = Corpus(Path(), {"title": "poems", "tokens": counts})
    short = [part for part, count in counts.items() if count < context + 1]
    if not short:
        check_length(corpus, context)
        return
    count = counts[short[0]]
    says = (
        "is empty; use more text" if count == 0 else f"has {count} tokens, and data.context={context} needs"
    )
    with pytest.raises(UserError, match=f"^the {short[0]} part of poems {says}"):
        check_length(corpus, context)
    check_length(corpus, context, set(counts) - set(short))
