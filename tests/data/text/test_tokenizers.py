"""Text to tokens and back: bytes, byte pairs trained here, tokenizers from files."""

import functools
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, ByteLevelBPETokenizer, Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from bitexp.common.errors import UserError
from bitexp.data.text.tokenizers import (
    END,
    ByteTokenizer,
    first_characters,
    load_tokenizer,
    read_tokenizer,
    train_bpe,
)

TEXTS = ["the thing that they think", "grüße 😀😀, 世界", "def f(x):\n    return x\n"] * 3
KINDS = {"bytes": ByteTokenizer(), "plain": train_bpe(TEXTS[:1], 257), "merged": train_bpe(TEXTS, 300)}
unicode = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
texts = st.one_of(
    unicode, st.lists(st.sampled_from([*TEXTS, "😀", "👩‍👩‍👧", "é", " ", "\ufffd"])).map("".join)
)

each = pytest.mark.parametrize("kind", KINDS)


def encode(tokenizer, text):
    return tokenizer.encode([text])[0].tolist()


def say(tokenizer, ids):
    return "".join(tokenizer.stream(ids))


@each
@given(texts)
@example("a\ufffd")
def test_text_comes_back(kind, text):
    tokenizer = KINDS[kind]
    ids = encode(tokenizer, text)
    assert say(tokenizer, ids) == text
    assert all(0 <= token < tokenizer.size and token != tokenizer.end for token in ids)
    if kind == "bytes":
        assert bytes(ids) == text.encode()


ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("word", [*ENDS, "<s>", "<pad>", "[MASK]"])
def test_words_of_special_tokens_are_text(kind, word):
    tokenizer = KINDS[kind]
    ids = encode(tokenizer, f"so {word} on")
    assert tokenizer.end not in ids
    assert say(tokenizer, ids) == f"so {word} on"


@pytest.mark.parametrize("special", [True, False])
def test_words_of_special_tokens_of_a_file_are_text(special):
    inner = Tokenizer.from_str(KINDS["merged"].to_json().replace(END, "<eos>"))
    inner.add_special_tokens(["<s>", "<pad>"])
    written = inner.to_str().replace('"special": true', f'"special": {str(special).lower()}')
    tokenizer = load_tokenizer(load_tokenizer(written, "here").to_json(), "there")
    ids = encode(tokenizer, "a<eos>b")
    assert tokenizer.end not in ids
    assert say(tokenizer, ids) == "a<eos>b"
    if special:
        ids = encode(tokenizer, "a<s><pad>b")
        assert not {inner.token_to_id(word) for word in ("<s>", "<pad>")} & set(ids)


def test_an_end_that_is_a_word_of_the_vocabulary_is_refused_in_texts():
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("a", -1.0), ("<", -3.0), ("/", -3.0), ("s", -3.0), (">", -3.0)]
    inner = Tokenizer(models.Unigram(pieces, 0, byte_fallback=False))
    inner.add_special_tokens(["</s>"])
    tokenizer = load_tokenizer(inner.to_str(), "words.json")
    assert encode(tokenizer, "a</a") == [2, 3, 4, 2]
    with pytest.raises(UserError, match=r"^words\.json knows the word '</s>' only as .* the text 'a</s>a'"):
        tokenizer.encode(["a", "a</s>a"])


def test_a_zero_in_a_text_does_not_end_it_where_tokens_are_bytes():
    assert say(KINDS["bytes"], encode(KINDS["bytes"], "a\0b")) == "a\ufffdb"
    assert say(KINDS["merged"], encode(KINDS["merged"], "a\0b")) == "a\0b"


@each
def test_texts_are_encoded_one_by_one(kind):
    batch = KINDS[kind].encode(["", *TEXTS])
    assert [ids.tolist() for ids in batch] == [encode(KINDS[kind], text) for text in ["", *TEXTS]]
    assert len(batch[0]) == 0


@pytest.mark.parametrize("kind", ["bytes", "plain"])
def test_a_character_is_said_once_it_is_whole(kind):
    pieces = list(KINDS[kind].stream(encode(KINDS[kind], "a😀é")))
    assert pieces == ["a", "", "", "", "😀", "", "é", ""]


@each
def test_ids_of_a_model_that_has_more_can_be_said(kind):
    tokenizer = KINDS[kind]
    ids = encode(tokenizer, "é")
    unknown = "\ufffd" if kind == "bytes" else ""
    assert say(tokenizer, [*ids, tokenizer.size, *ids, 10**6]) == f"é{unknown}é{unknown}"


@each
@given(st.data())
def test_any_tokens_can_be_said(kind, data):
    """A network that has learned little makes bytes that are no characters."""
    tokenizer = KINDS[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.size - 1).filter(lambda token: token != tokenizer.end)))
    expected = bytes(ids).decode("utf-8", "replace") if kind == "bytes" else tokenizer.inner.decode(ids)
    assert say(tokenizer, ids) == expected


@each
def test_nothing_is_said_or_taken_after_the_end(kind):
    tokenizer = KINDS[kind]
    ids = iter([*encode(tokenizer, "so"), tokenizer.end, *encode(tokenizer, "xyz")])
    assert say(tokenizer, ids) == "so"
    assert say(tokenizer, ids) == "xyz"


@given(texts)
def test_byte_pairs_are_those_of_the_library(text):
    expected = gpt2().encode(text).ids
    assert encode(KINDS["merged"], text) == expected
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(KINDS["merged"].to_json()))
    assert fast(text, add_special_tokens=False)["input_ids"] == expected


@functools.cache
def gpt2():
    """GPT-2's tokenizer as the library has it, trained on the same texts."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        TEXTS, vocab_size=300, min_frequency=0, special_tokens=[END], show_progress=False
    )
    return tokenizer


@pytest.mark.parametrize(
    ("asked", "texts", "size"), [(257, TEXTS, 257), (280, TEXTS, 280), (999, ["abc"], 259)]
)
def test_the_vocabulary_has_a_limit(asked, texts, size):
    tokenizer = train_bpe(texts, asked)
    assert tokenizer.size == size
    assert len(encode(tokenizer, "abc")) == {257: 3, 280: 3, 999: 1}[asked]


def test_training_reads_no_more_than_it_needs():
    documents = iter(["abc", "de", "f"])
    assert list(first_characters(documents, 4)) == ["abc", "de"]
    assert list(documents) == ["f"]
    assert list(first_characters(["abc"], 4)) == ["abc"]


@each
def test_a_tokenizer_is_kept_as_text(kind):
    tokenizer = KINDS[kind]
    again = load_tokenizer(tokenizer.to_json(), "here")
    assert (again.size, again.end, again.to_json()) == (tokenizer.size, tokenizer.end, tokenizer.to_json())
    assert encode(again, "".join(TEXTS)) == encode(tokenizer, "".join(TEXTS))


def words(**ids):
    """A tokenizer of whole words, as the library writes it."""
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="a"))
    tokenizer.add_special_tokens([AddedToken(word) for word in ids if not word.isalpha()])
    return tokenizer


@pytest.mark.parametrize("end", [END, "<|end_of_text|>", "</s>", "<eos>", "[SEP]"])
def test_a_file_brings_its_own_end_and_may_have_gaps(tmp_path, end):
    path = tmp_path / "tokenizer.json"
    words(a=0, **{end: 70_000}).save(str(path))
    tokenizer = read_tokenizer(path)
    assert (tokenizer.end, tokenizer.size) == (70_000, 70_001)


def test_no_text_is_cut_or_filled_up():
    inner = Tokenizer.from_str(KINDS["merged"].to_json())
    inner.post_processor = processors.TemplateProcessing(f"{END} $0 {END}", special_tokens=[(END, 0)])
    inner.enable_truncation(3)
    inner.enable_padding(length=40)
    tokenizer = load_tokenizer(inner.to_str(), "here")
    assert [ids.tolist() for ids in tokenizer.encode(TEXTS)] == [encode(KINDS["merged"], t) for t in TEXTS]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"tokenizer\.json is not a tokenizer\.json: .*line 1"),
        (b'{"model": 1}', r"is not a tokenizer\.json: "),
        (b"\xff", r"cannot be read: .*0xff.*Known: bytes, bpe, or the path of a tokenizer\.json"),
        (None, r"cannot be read: .*No such file"),
        (words(a=0, b=1).to_str().encode(), r"has no token that ends a text\. Known: <\|endoftext\|>, "),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_tokenizer(path)
    assert str(path) in str(caught.value)


def test_a_typo_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="Did you mean 'bytes'"):
        read_tokenizer(tmp_path.relative_to(tmp_path) / "byte")


@pytest.mark.parametrize("make", [lambda: train_bpe(TEXTS, 300), lambda: load_tokenizer("{}", "here")])
def test_a_missing_library_is_told(monkeypatch, make):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r'pip install "bitexp\[text\]", or use data.tokenizer=bytes'):
        make()
