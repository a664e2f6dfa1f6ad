"""Data sets of the library `datasets` in local folders: no network."""

import os
import sys

import datasets
import huggingface_hub
import huggingface_hub.constants
import numpy as np
import pytest

from bitexp.common.errors import UserError
from bitexp.data.text.documents import stream_huggingface
from bitexp.data.text.hub import ask_hub
from bitexp.data.text.huggingface import HuggingFace

COUNTS = {"train": 60, "validation": 30, "test": 25}
TEXTS = {part: [f"{part} {number}: grüße 😀" for number in range(COUNTS[part])] for part in COUNTS}
ROWS = {part: {"id": list(range(COUNTS[part])), "text": TEXTS[part]} for part in COUNTS}


@pytest.fixture(autouse=True, scope="module")
def offline(tmp_path_factory):
    """No network, and nothing written outside of the test."""
    cache = str(tmp_path_factory.mktemp("huggingface"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"HF_HUB_OFFLINE": "1", "HF_HOME": cache, "HF_DATASETS_CACHE": cache}.items():
            patch.setenv(name, value)
        for module in (huggingface_hub.constants, datasets.config):  # they read the environment once
            patch.setattr(module, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        datasets.disable_progress_bars()
        yield
        datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def folders(tmp_path_factory, offline):
    """The same three parts as each kind of folder; `single` has the training part alone."""
    root = tmp_path_factory.mktemp("sets")
    parts = datasets.DatasetDict({part: datasets.Dataset.from_dict(rows) for part, rows in ROWS.items()})
    for part, rows in parts.items():
        rows.to_parquet(root / "parquet" / f"{part}.parquet")
        rows.to_json(root / "jsonl" / f"{part}.jsonl", force_ascii=False)
    parts.save_to_disk(str(root / "saved"))
    parts["train"].save_to_disk(str(root / "single"))
    return root


@pytest.fixture
def make(compose_config, tmp_path, monkeypatch):
    """A data set as huggingface.yaml has it, read for the first time."""
    monkeypatch.setenv("BITEXP_CACHE", str(tmp_path / "cache"))

    def build(path, **changes):
        options = compose_config("data=huggingface")["data"]
        del options["name"]
        return HuggingFace(**{**options, "seed": 1, "context": 8, "path": path and str(path), **changes})

    return build


def texts_of(data, part):
    tokens = data.corpus.tokens(part)
    return bytes(tokens.astype(np.uint8)).decode().split("\0")[:-1]


kinds = pytest.mark.parametrize("kind", ["parquet", "jsonl", "saved"])


@kinds
def test_splits_are_parts(folders, make, kind):
    data = make(folders / kind, val_split="validation", test_split="test")
    assert texts_of(data, "train") == TEXTS["train"]
    assert texts_of(data, "val") == TEXTS["validation"]
    assert texts_of(data, "test") == TEXTS["test"]
    assert data.preprocessing()["corpus"] == data.locate() == str(folders / kind)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "saved", "single"])
def test_parts_are_held_out_of_one_split(folders, make, kind):
    data = make(folders / kind)
    assert texts_of(data, "test") == TEXTS["train"][9::10]
    assert len(texts_of(data, "val")) == 2
    assert len(texts_of(data, "train")) == 52


@kinds
def test_texts_are_those_that_the_library_loads(folders, kind):
    path = str(folders / kind)
    loaded = datasets.load_from_disk(path) if kind == "saved" else datasets.load_dataset(path)
    for split in COUNTS:
        streamed = list(stream_huggingface(path, None, split, None, "text", None))
        assert streamed == list(loaded[split]["text"]) == TEXTS[split]


@kinds
@pytest.mark.parametrize("limit", [1, 45, 999])
def test_the_first_documents_may_be_enough(folders, make, kind, limit):
    data = make(folders / kind, documents_limit=limit, test_split="test")
    assert list(data.documents("train")) == TEXTS["train"][:limit]
    assert list(data.documents("test")) == TEXTS["test"]


def test_a_data_set_may_have_subsets(make, tmp_path):
    for name in ("small", "big"):
        datasets.Dataset.from_dict({"text": [name] * 30}).to_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n"
        "- {config_name: small, data_files: small.parquet}\n"
        "- {config_name: big, data_files: big.parquet}\n---\n"
    )
    small, big = (make(tmp_path, subset=name) for name in ("small", "big"))
    assert set(small.documents("train")) == {"small"}
    assert set(big.documents("train")) == {"big"}
    assert big.describe() == f"{tmp_path} (big)"
    assert small.content_key() != big.content_key()
    for wrong in (None, "huge"):
        with pytest.raises(UserError, match=r"cannot be read: .*small.*big.*Without network: data=stdlib"):
            next(make(tmp_path, subset=wrong).documents("train"))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "parquet",
            {"field": "body"},
            r"^row 0 of .* no text under 'body' \(data.field\). Its columns: id, text$",
        ),
        ("saved", {"field": "id"}, r"^row 0 of .* no text under 'id' \(data.field\). Its columns: id, text$"),
        ("parquet", {"split": "dev"}, r"\(split dev\) cannot be read: .*'train', 'validation', 'test'"),
        ("saved", {"test_split": "dev"}, "has no split 'dev'. Its splits: train, validation, test$"),
        ("single", {"val_split": "validation"}, "has no split 'validation'. Its splits: train$"),
        (
            "no-such/set",
            {},
            r"^the Hugging Face data set no-such/set \(split train\) cannot be read: .*Offline.*\. With",
        ),
    ],
)
def test_what_is_not_there_is_told(folders, make, kind, options, message):
    path = kind if "/" in kind else folders / kind
    with pytest.raises(UserError, match=message):
        make(path, **options).setup()


def test_a_broken_file_is_told(make, tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(UserError, match=rf"data set {tmp_path} \(split train\) cannot be read: .*\. Without"):
        make(tmp_path).setup()


def test_tokens_are_read_again_where_something_changed(folders, make, tmp_path):
    for part in ("train", "test"):
        datasets.Dataset.from_dict(ROWS[part]).to_json(tmp_path / "set" / f"{part}.jsonl")
    first = make(tmp_path / "set")
    changes = [
        {"split": "test"},
        {"val_split": "test"},
        {"test_split": "test"},
        {"field": "id"},
        {"documents_limit": 30},
        {"subset": "default"},
        {"revision": "v2"},
    ]
    keys = [first.content_key(), *(make(tmp_path / "set", **change).content_key() for change in changes)]
    assert make(tmp_path / "set", seed=2, context=9).content_key() == keys[0]
    path = tmp_path / "set" / "train.jsonl"
    tokens = first.fingerprint()
    times = path.stat()
    path.write_text(path.read_text().replace("train 7", "train 8"))  # as long as before
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = make(tmp_path / "set")
    assert len({*keys, changed.content_key()}) == len(changes) + 2
    assert changed.fingerprint() != tokens
    assert make("owner/name").content_key() != make("owner/name", revision="v2").content_key()


@pytest.fixture
def hub(folders, monkeypatch):
    """A hub that holds `owner/name`: the commit of each branch, None where it does not answer."""
    branches = {}
    asked = []

    def answer(path, revision):
        if branches.get(revision) is None:
            raise ConnectionError("no network")
        return branches[revision]

    def stream(path, name, split, revision, field, limit):
        asked.append(revision)
        yield from (f"{text} {revision}" for text in TEXTS["train"])

    monkeypatch.setattr("bitexp.data.text.hub.ask_hub", answer)
    monkeypatch.setattr("bitexp.data.text.huggingface.stream_huggingface", stream)
    return branches, asked


OLD, NEW = "a1" * 20, "b2" * 20


def test_a_name_on_the_hub_means_its_commit_of_today(make, hub):
    branches, asked = hub
    branches |= {None: OLD, "v2": NEW}
    first, again = (make("owner/name") for _ in range(2))
    assert first.fingerprint() == again.fingerprint()
    assert set(asked) == {OLD}
    assert first.remarks().endswith("; commit a1a1a1a1a1a1")
    branches[None] = NEW  # somebody pushed
    pushed = make("owner/name")
    assert pushed.fingerprint() != first.fingerprint()
    assert set(asked) == {OLD, NEW}
    count = len(asked)
    same = [make("owner/name", revision=revision).fingerprint() for revision in ("v2", NEW)]
    assert same == [pushed.fingerprint()] * 2
    assert len(asked) == count  # the tokens of a commit are read once, whatever it is called


def test_without_an_answer_of_the_hub_data_are_what_they_were_and_that_is_said(make, hub):
    branches, asked = hub
    branches[None] = OLD
    first = make("owner/name").fingerprint()
    branches.clear()
    count = len(asked)
    later = make("owner/name")
    assert later.fingerprint() == first
    assert later.remarks().endswith("; commit a1a1a1a1a1a1 (the hub did not answer: data as last read)")
    assert len(asked) == count
    never = make("owner/other")
    assert never.remarks().endswith("; commit not known (the hub did not answer: data as last read)")


def test_a_commit_needs_no_question(make, hub):
    assert make("owner/name", revision=NEW).remarks().endswith("; commit b2b2b2b2b2b2")


def test_the_hub_is_asked_for_a_commit(monkeypatch):
    def dataset_info(self, path, revision, timeout):
        assert (path, revision) == ("owner/name", "v2")
        return huggingface_hub.DatasetInfo(id=path, sha=OLD)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    assert ask_hub("owner/name", "v2") == OLD


def test_a_data_set_has_to_be_named(make):
    with pytest.raises(UserError, match=r"needs the name of a data set, or a folder.*data.path=roneneldan"):
        make(None).locate()
    with pytest.raises(ValueError, match="documents_limit=0 must be at least 1"):
        make("owner/name", documents_limit=0)


def test_a_missing_library_is_told(folders, make, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r'pip install "bitexp\[huggingface\]"'):
        make(folders / "parquet").setup()
