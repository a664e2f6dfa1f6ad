"""The READMEs of the checkout as data: their code blocks, commands, links and headings."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
ELSEWHERE = ("outputs", "build", "dist", "data")
"""Folders at the top whose READMEs are not ours; nor are those in folders that begin with a dot."""

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"(?:# @package \S+\n)?# (\S+/\S+\.(?:py|yaml))\n")


@dataclass(frozen=True)
class Block:
    """A block of code in a README."""

    readme: Path
    line: int
    language: str
    code: str

    @property
    def file(self) -> str | None:
        """The path that its first comment names, where it shows a file to be written."""
        match = FILE.match(self.code)
        return match and match[1]

    def __str__(self) -> str:
        return f"{self.readme.relative_to(ROOT)}:{self.line}"


@cache
def readmes() -> dict[Path, str]:
    """The text of every README."""
    found = {}
    for folder, folders, files in os.walk(ROOT):
        skipped = ELSEWHERE if Path(folder) == ROOT else ()
        folders[:] = sorted(name for name in folders if name[0] != "." and name not in skipped)
        if "README.md" in files:
            found[Path(folder, "README.md")] = Path(folder, "README.md").read_text(encoding="utf-8")
    return found


@cache
def blocks(*languages: str) -> tuple[Block, ...]:
    """The code blocks in these languages, of all READMEs."""
    return tuple(
        Block(path, text[: match.start()].count("\n") + 2, match[1], match[2])
        for path, text in readmes().items()
        for match in FENCE.finditer(text)
        if match[1] in languages
    )


def shown_files(top: str) -> dict[str, str]:
    """The files that READMEs show below a folder, by their path."""
    shown = {block.file: block.code for block in blocks("python", "yaml") if block.file}
    return {path: code for path, code in shown.items() if path.startswith(f"{top}/")}


def prose(text: str) -> str:
    """A README without its blocks of code."""
    return FENCE.sub("", text)


def commands(*paths: Path) -> list[str]:
    """Every `python -m bitexp ...` in bash, tables and text, once; of all READMEs or of these."""
    typed = []
    for text in (readmes()[path] for path in paths or readmes()):
        for language, code in FENCE.findall(text):
            if language == "bash":
                typed += re.findall(r"^python -m bitexp[^\n#]*", code, re.MULTILINE)
        typed += re.findall(r"`(python -m bitexp [^`]*)`", prose(text))
    return list(dict.fromkeys(command.strip() for command in typed))


def links(text: str) -> Iterator[str]:
    """The relative links and images of a README."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(text))
    return (target for target in targets if not re.match(r"\w+:", target))


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a README in links."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
