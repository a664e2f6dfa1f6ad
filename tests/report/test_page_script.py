"""The page's script in a browser: rows are sorted and filtered, the parts of a wide table together."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bitexp.report.columns import Table, numeric, word
from bitexp.report.formats import web
from bitexp.report.page import SCRIPT

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="there is no browser")]
ITEMS = (("a", 10.0), ("b", 9.0), ("c", None), ("d", 100.0), ("e", -1.0), ("f", 0.5))


def after(act: str, tmp_path: Path) -> list[str]:
    """The rows that are seen after a script of ours, part by part."""
    long = "x" * 100
    columns = (
        word("name", "name", lambda item: item[0]),
        numeric("number", "number", lambda item: item[1], "+.2e"),
        word("long", "long", lambda item: f"{item[0]}{long}"),
        word("other", "other", lambda item: f"{long}{item[0]}"),
    )
    page = tmp_path / "page.html"
    body = web(Table("t", columns, ITEMS))
    page.write_text(f"<!doctype html><body>{body}<script>{SCRIPT}</script><script>{act}</script></body>")
    done = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    bodies = re.findall(r"<tbody>(.*?)</tbody>", done.stdout, re.DOTALL)
    assert len(bodies) == 2
    rows = [re.findall(r"<tr>(.*?)</tr>", one, re.DOTALL) for one in bodies]  # hidden ones are <tr hidden="">
    return ["".join(re.findall(r"<td>(?:x{100})?([a-f])", "".join(part))) for part in rows]


CLICK = "document.querySelectorAll('th button')[1].click();"


def test_a_click_sorts_numbers_by_their_value_in_all_parts(tmp_path: Path) -> None:
    first, second = after(CLICK, tmp_path)
    assert first[::2] == second == "efbadc"
    first, second = after(CLICK * 2, tmp_path)
    assert first[::2] == second == "dabfec"
    assert after(CLICK * 3, tmp_path)[1] == "abcdef"


def test_a_field_filters_rows(tmp_path: Path) -> None:
    words = "const f = document.querySelector('input'); f.value = '%s'; f.dispatchEvent(new Event('input'));"
    assert after(words % "e+02", tmp_path)[1] == "d"
    assert after(words % "", tmp_path)[1] == "abcdef"
