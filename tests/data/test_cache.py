"""What is kept of data: where, and that a changed record is noticed."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitexp.data.cache import cache_folder, is_whole, sealed

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
records = st.dictionaries(st.sampled_from(["format", "tokens", "größe"]), values)


def test_the_cache_has_a_place(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for named, folder in (("/big/disk", "/big/disk"), ("near", tmp_path / "near")):
        monkeypatch.setenv("BITEXP_CACHE", named)
        assert cache_folder() == Path(folder)
    monkeypatch.delenv("BITEXP_CACHE")
    monkeypatch.setenv("HOME", "/home/ada")
    assert cache_folder() == Path("/home/ada/.cache/bitexp")


@given(records)
def test_a_record_is_whole_after_a_way_through_a_file(record):
    again = json.loads(json.dumps(sealed(record)))
    assert is_whole(again)
    assert {key: value for key, value in again.items() if key != "checksum"} == record


@given(records, records)
def test_another_record_does_not_pass(record, other):
    same = json.dumps(record, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert is_whole({**other, "checksum": sealed(record)["checksum"]}) == same


@pytest.mark.parametrize("value", [None, [], "checksum", {}, {"checksum": None}, {"format": 1}])
def test_what_is_no_record_does_not_pass(value):
    assert not is_whole(value)
