"""Documents in files: what is found, what is read, and what is said about the rest."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitexp.common.errors import UserError
from bitexp.data.text.documents import digest_files, matching_files, read_files, standard_library

unicode = st.text(st.characters(codec="utf-8"))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("documents")


def write(folder, **files):
    """Files by name, `_` for the dot."""
    paths = [folder / name.replace("_", ".") for name in files]
    for path, content in zip(paths, files.values(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return paths


@given(st.lists(unicode), st.booleans(), st.sampled_from(["jsonl", "ndjson"]))
def test_lines_of_json_are_documents(scratch, texts, ascii_only, ending):
    lines = [json.dumps({"id": 1, "body": text}, ensure_ascii=ascii_only) for text in texts]
    path = scratch / f"lines.{ending}"
    path.write_bytes("\n\n".join(lines).encode())
    assert list(read_files([path], "body")) == texts


@given(unicode)
def test_a_text_file_is_one_document(scratch, text):
    path = scratch / "any.txt"
    path.write_bytes(text.encode())
    assert list(read_files([path], "body")) == [text]


def test_files_are_read_in_the_order_given(tmp_path):
    first, second, third = write(
        tmp_path, b_txt="one", a_jsonl='{"text": "two"}\n{"text": "three"}', c="four"
    )
    assert list(read_files([first, second, third], "text")) == ["one", "two", "three", "four"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{'text': 1}", "line 3 is not JSON: Expecting property name"),
        (b'{"text": "cut', "line 3 is not JSON: Unterminated string starting at: column 10"),
        (b'{"body": "x", "id": 1}', r"line 3 has no text under 'text' \(data.field\). Its keys: body, id"),
        (b'{"text": 7}', "line 3 has no text under 'text'"),
        (b'{"text": null}', "line 3 has no text under 'text'"),
        (b'["text"]', r"line 3 has no text under 'text' \(data.field\). Its keys: none"),
        (b'{"text": "caf\xe9"}', "line 3 is not UTF-8: byte 0xe9 at position 13. Convert it"),
        (b'{"text": "\\ud83d"}', r"line 3 contains half a character \(a lone surrogate\) under 'text'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    (path,) = write(tmp_path, a_jsonl=b'{"text": "good"}\n\n' + line + b"\n")
    documents = read_files([path], "text")
    assert next(documents) == "good"
    with pytest.raises(UserError, match=message) as caught:
        next(documents)
    assert str(caught.value).startswith(f"{path}, line 3 ")


def test_a_file_in_another_encoding_is_named(tmp_path):
    good, bad = write(tmp_path, good_txt="fine", bad_txt=b"x" * 1003 + "é".encode("latin1") + b"ab")
    with pytest.raises(UserError) as caught:
        list(read_files([good, bad], "text"))
    assert str(caught.value).startswith(f"{bad} is not UTF-8: byte 0xe9 at position 1,003. Convert it")
    assert "iconv -f latin1 -t utf-8" in str(caught.value)


def test_paths_folders_and_wildcards_name_files(tmp_path, monkeypatch):
    write(tmp_path / "books", b_txt="", a_txt="", c_md="")
    write(tmp_path / "books" / "old", d_txt="")
    write(tmp_path, e_txt="")

    def found(*patterns):
        return [str(path.relative_to(tmp_path)) for path in matching_files(patterns, "data.files")]

    root, books = str(tmp_path), str(tmp_path / "books")
    assert found(books) == ["books/a.txt", "books/b.txt", "books/c.md", "books/old/d.txt"]
    assert found(f"{books}/*.txt") == ["books/a.txt", "books/b.txt"]  # a folder is no file
    assert found(f"{books}/[ab]*") == ["books/a.txt", "books/b.txt"]
    assert found(f"{root}/**/*.txt") == ["books/a.txt", "books/b.txt", "books/old/d.txt", "e.txt"]
    assert found(f"{root}/e.txt", f"{books}/old", f"{root}/*.txt") == ["books/old/d.txt", "e.txt"]
    monkeypatch.setenv("HOME", root)
    assert found("~/e.txt", "~/books/*.md") == ["books/c.md", "e.txt"]


def test_names_may_hold_brackets(tmp_path):
    (path,) = write(tmp_path / "books [1900]", a_txt="")
    (decoy,) = write(tmp_path / "books 1", a_txt="")
    assert matching_files([str(path.parent)], "data.files") == [path]
    assert matching_files([str(path)], "data.files") == [path]
    assert matching_files([str(tmp_path / "books [1900]*" / "*")], "data.files") == [decoy]


def test_a_pattern_without_files_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write(tmp_path, a_txt="")
    for pattern in ("nowhere.txt", "*.md", "empty"):
        with pytest.raises(UserError) as caught:
            matching_files(["a.txt", pattern], "data.val_files")
        assert str(caught.value).startswith(
            f"data.val_files: there is no file '{pattern}' (looked for {tmp_path / pattern}); name"
        )


def test_a_digest_is_of_what_is_in_the_files(tmp_path):
    one, two, lines = write(tmp_path, a_txt="one", b_txt="two", c_jsonl="one")
    digest = digest_files([one, two])
    assert digest == digest_files([one.rename(tmp_path / "z.txt"), two])
    one = tmp_path / "z.txt"
    others = [digest_files(paths) for paths in ([two, one], [one], [one, one], [lines, two])]
    two.write_text("tw0")
    assert len({digest, digest_files([one, two]), *others}) == 6


def test_the_standard_library_is_programs_in_order():
    files = standard_library()
    assert len(files) > 300
    assert list(files) == sorted(files)
    names = {Path(*path.parts[-2:]).as_posix() for path in files}
    assert {"json/decoder.py", "asyncio/tasks.py", "email/message.py"} <= names
    parts = {part for path in files for part in path.parts}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "__pycache__"}
    assert sum(map(len, read_files(files, ""))) > 5_000_000
