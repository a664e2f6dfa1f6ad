"""What words depend on for their meaning: YAML, the variables that it reads, the source."""

from __future__ import annotations

from pathlib import Path

import pytest

import bitexp.config.context
from bitexp.config.context import context
from tests.support.configs import CONF


def test_words_mean_something_else_when_what_they_depend_on_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("a: ${oc.env:BITEXP_TEST_A,1}")
    monkeypatch.delenv("BITEXP_TEST_A", raising=False)
    seen = [context([CONF], ()), context([tmp_path], ()), context([tmp_path], ["b=${oc.env:BITEXP_TEST_B}"])]
    monkeypatch.setenv("BITEXP_TEST_A", "2")
    seen.append(context([tmp_path], ()))
    monkeypatch.setenv("BITEXP_TEST_B", "2")
    seen.append(context([tmp_path], ["b=${oc.env:BITEXP_TEST_B}"]))
    file.write_text("a: 1")
    seen.append(context([tmp_path], ()))
    (tmp_path / "method.py").write_text("scale = 2")
    monkeypatch.setattr(bitexp.config.context, "PACKAGE", tmp_path)
    seen.append(context([tmp_path], ()))
    (tmp_path / "method.py").write_text("scale = 8")
    seen.append(context([tmp_path], ()))
    assert len(set(seen)) == len(seen)
    assert context([tmp_path], ()) == seen[-1]
