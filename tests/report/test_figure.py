"""How drawings are kept: smaller, and looking the same."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from matplotlib.figure import Figure

from bitexp.report import figure

SVG = "{http://www.w3.org/2000/svg}"


def drawing() -> Figure:
    made = Figure(figsize=(4, 3))
    panel = made.subplots()
    panel.plot([0.1234567, 1.7654321, 2.5], [1, 3, 2], "o--", color=figure.PRECISIONS[2], label="a  b <c>")
    panel.errorbar([1], [2], yerr=[0.5])
    panel.legend()
    return made


def styled(text: str) -> list[tuple[str, str]]:
    """The style of each element that has one, by its own word or by its class."""
    rules = dict(re.findall(r"\.(s[0-9a-f]{6})\{([^}]*)\}", text))
    found = []
    for element in ET.fromstring(text).iter():
        style = element.get("style") or rules.get(element.get("class", ""))
        if style:
            found.append((element.tag.removeprefix(SVG), style))
    return found


def test_a_smaller_drawing_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with figure.style():
        small = figure.svg(drawing(), "x")
        monkeypatch.setattr(figure, "smaller", lambda text: text)
        large = figure.svg(drawing(), "x")
    assert styled(small) == styled(large)
    assert len(styled(small)) > 20
    number = r"-?\d+(?:\.\d+)?"
    paths = [[re.findall(number, d) for d in re.findall(r'\bd="([^"]*)"', text)] for text in (small, large)]
    for ours, theirs in zip(*paths, strict=True):
        assert [float(one) for one in ours] == pytest.approx([float(one) for one in theirs], abs=0.0051)
    texts = [["".join(e.itertext()) for e in ET.fromstring(t).iter(f"{SVG}text")] for t in (small, large)]
    assert texts[0] == texts[1]
    assert "a  b <c>" in texts[0]
    assert len(small) < 0.7 * len(large)


@pytest.mark.parametrize(
    ("numbers", "text"), [("M 1.23456 2\nL -0.00049 3.999999 \nz", "M 1.23 2 L -0 4 z"), ("10.5", "10.5")]
)
def test_numbers_are_rounded(numbers: str, text: str) -> None:
    assert figure.rounded(numbers) == text
