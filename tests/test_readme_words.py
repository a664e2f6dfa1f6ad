"""The READMEs in words: links lead somewhere, old words are gone, everything is named in its room."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

import bitexp.run.road  # noqa: F401  children that are forked do not import it again
from bitexp.cli.commands import COMMANDS
from bitexp.deploy import LAYOUTS
from bitexp.kernels import KERNELS
from bitexp.quant.calibration import CALIBRATIONS
from bitexp.quant.options import REGISTRIES
from bitexp.tasks import LOSSES, OBJECTIVES, TASKS
from bitexp.track.trackers import TRACKERS
from tests.support.readmes import ROOT, anchors, commands, links, prose, readmes

OLD_WORDS = {
    r"set_product": (), r"act_qmax": ("bitexp/deploy/README.md",), r"bitexp\.generate": (),
    r"python -m bitexp\.\w": (), r"other source": (), r"speaks? for": (), r"told with": (),
    r"quantizer\.(granularity|group_size)": (), r"steps? per (tensor|token|channel|group|output)": (),
    r"(mean|median|activation|weight) steps?\b": (),
}  # fmt: skip
"""What was said before, and where it still may be: `act_qmax` is a key of packed files of format 1."""


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180


@pytest.mark.parametrize("path", readmes(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for link in links(readmes()[path]):
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(readmes()[target]), link


@pytest.mark.parametrize("path", readmes(), ids=lambda path: str(path.relative_to(ROOT)))
def test_old_words_are_gone(path: Path) -> None:
    for word, places in OLD_WORDS.items():
        if str(path.relative_to(ROOT)) not in places:
            assert re.findall(word, readmes()[path]) == []


def named_in(path: str, words: Iterable[str]) -> None:
    """Asserts that a README has each of the words as code."""
    text = prose((ROOT / path).read_text())
    spans = set(re.findall(r"`([^`]+)`", text))
    pieces = {piece for span in spans for piece in (span, span.rstrip("/"), span.rpartition("=")[2])}
    assert set(words) - pieces == set(), path


@pytest.mark.parametrize(
    "group", sorted({p.parent.relative_to(ROOT / "conf").as_posix() for p in (ROOT / "conf").rglob("*.yaml")})
)
def test_every_choice_of_a_group_is_named(group: str) -> None:
    if group not in (".", "base", "claims", "tuning"):
        named_in("conf/README.md", (file.stem for file in (ROOT / "conf" / group).glob("*.yaml")))


def test_everything_is_named_in_its_room() -> None:
    named_in("bitexp/README.md", (f.name for f in (ROOT / "bitexp").iterdir() if any(f.glob("*.py"))))
    named_in("bitexp/kernels/README.md", KERNELS.names())
    named_in("bitexp/deploy/README.md", LAYOUTS)
    named_in("bitexp/tasks/README.md", [*TASKS.names(), *OBJECTIVES.names(), *LOSSES.names()])
    named_in("bitexp/track/README.md", TRACKERS.names())
    named_in("sweeps/README.md", (file.stem for file in (ROOT / "sweeps").glob("*.yaml")))
    for key, registry in REGISTRIES.items():
        named_in("bitexp/quant/README.md", [key, *registry.names()])
    named_in("bitexp/quant/README.md", CALIBRATIONS.names())
    assert all(any(f"python -m bitexp {word}" in line for line in commands()) for word in COMMANDS)
