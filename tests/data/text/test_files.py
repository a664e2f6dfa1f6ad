"""Text of one's own: which files are which part, and when they are read again."""

import json
from itertools import chain

import numpy as np
import pytest

from bitexp.common.errors import UserError
from bitexp.data.text.files import TextFiles


@pytest.fixture
def make(compose_config, tmp_path, monkeypatch):
    """Short windows of the files in the current folder, tokens beside them."""
    monkeypatch.setenv("BITEXP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "texts").mkdir()
    monkeypatch.chdir(tmp_path / "texts")

    def build(*files, **changes):
        options = compose_config("data=text")["data"]
        del options["name"]
        return TextFiles(**{**options, "seed": 1, "context": 4, "files": list(files), **changes})

    return build


def write(name, *texts, field="text"):
    with open(name, "w", encoding="utf-8") as file:
        file.writelines(json.dumps({field: text}) + "\n" for text in texts)


def texts_of(data, part):
    tokens = data.corpus.tokens(part)
    return bytes(tokens.astype(np.uint8)).decode().split("\0")[:-1]


def test_text_and_lines_are_documents_together(make):
    numbers = [f"line {number}" for number in range(60)]
    write("b.jsonl", *numbers)
    for name in ("a", "c"):
        with open(f"{name}.txt", "w", encoding="utf-8") as file:
            file.write(f"all of {name}\n")
    data = make("*.txt", "b.jsonl")
    documents = ["all of a\n", *numbers, "all of c\n"]
    assert list(data.documents("train")) == documents
    assert texts_of(data, "test") == documents[9::10]
    assert sorted(chain(*(texts_of(data, part) for part in data.sizes))) == sorted(documents)
    assert data.preprocessing()["corpus"] == "3 files"
    assert make("b.jsonl").describe() == "b.jsonl"


def test_parts_may_have_files_of_their_own(make):
    for name in ("train", "val", "test"):
        write(f"{name}.jsonl", *(f"{name} {number}" for number in range(50)), field="body")
    data = make("train.jsonl", val_files=["val.jsonl"], test_files=["te*"], field="body")
    assert {part: texts_of(data, part) for part in data.sizes} == {
        part: [f"{part} {number}" for number in range(50)] for part in data.sizes
    }
    assert data.describe() == "3 files"
    mixed = make("train.jsonl", val_files=["val.jsonl"], field="body")
    assert texts_of(mixed, "val") == texts_of(data, "val")
    assert texts_of(mixed, "test") == [f"train {number}" for number in (9, 19, 29, 39, 49)]


def test_one_long_file_is_cut(make):
    text = "".join(f"{number} is a number. " for number in range(200))
    with open("long.txt", "w", encoding="utf-8") as file:
        file.write(text)
    data = make("long.txt")
    tested = round(len(text) * 0.1)
    validated = round((len(text) - tested) * 0.05)
    assert texts_of(data, "test") == [text[-tested:]]
    assert texts_of(data, "val") == [text[-tested - validated : -tested]]
    assert texts_of(data, "train") == [text[: -tested - validated]]


def test_tokens_follow_what_is_in_the_files(make, tmp_path):
    write("a.jsonl", *(f"line {number}" for number in range(200)))
    first = make("a.jsonl").corpus
    write("copy.jsonl", *(f"line {number}" for number in range(200)))
    assert make(str(tmp_path / "texts" / "copy.jsonl")).corpus.folder == first.folder
    write("a.jsonl", *(f"Line {number}" for number in range(200)))
    changed = make("a.jsonl").corpus
    own = make("a.jsonl", val_files=["copy.jsonl"]).corpus
    assert len({first.folder, changed.folder, own.folder}) == 3
    assert len({first.digest, changed.digest, own.digest}) == 3


def test_each_field_is_a_text_of_its_own(make):
    with open("a.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"de": f"Satz {n}", "en": f"sentence {n}"}) + "\n" for n in range(60))
    assert [texts_of(make("a.jsonl", field=field), "test")[0] for field in ("de", "en")] == [
        "Satz 9",
        "sentence 9",
    ]


def test_where_the_files_are(make, tmp_path):
    write("a.jsonl", "x")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.txt").touch()
    assert make("a.jsonl", str(tmp_path / "more")).locate() == f"., {tmp_path / 'more'}"


@pytest.mark.parametrize("files", [None, []])
def test_without_files_there_is_no_text(make, files):
    with pytest.raises(UserError, match=r"data=text needs the files of your text: 'data.files=\[books"):
        make(files=files).locate()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"files": ["b.txt"]}, r"^data.files: there is no file 'b.txt'"),
        ({"val_files": ["b.txt"]}, r"^data.val_files: there is no file 'b.txt'"),
        ({"test_files": ["b*"]}, r"^data.test_files: there is no file 'b\*'"),
        ({"field": "body"}, r"^a.jsonl, line 1 has no text under 'body' \(data.field\). Its keys: text"),
        ({"val_files": []}, "^the val part of a.jsonl is empty"),
    ],
)
def test_what_is_not_there_is_told(make, options, message):
    write("a.jsonl", *("some words" for _ in range(30)))
    with pytest.raises(UserError, match=message):
        make(**{"files": ["a.jsonl"], **options}).setup()


def test_a_prompt_is_of_the_text_itself(make):
    write("books.jsonl", *["Call me Ishmael. Some years ago"] * 60)
    write("numbers.jsonl", *["1 2 3 4 5"] * 60)
    assert make("books.jsonl").prompt == "Call me "
    assert make("numbers.jsonl").prompt == ""
