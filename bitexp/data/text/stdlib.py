"""The standard library's own source code: text that every machine with Python has, without any download."""

from __future__ import annotations

import platform
from collections.abc import Iterator

from bitexp.common.errors import UserError
from bitexp.data.base import Part
from bitexp.data.registry import DATA
from bitexp.data.text.base import TextData
from bitexp.data.text.documents import digest_files, read_files, standard_library


@DATA.register("stdlib")
class StandardLibrary(TextData):
    """About 470 files and 9 MB of Python, without tests; what it is exactly depends on Python's version."""

    title = "Python standard library"
    prompt = "def "

    def locate(self) -> str:
        if len(files := standard_library()) < 100:
            raise UserError(
                "data=stdlib reads the source of Python's standard library, and this Python has none "
                f"({len(files)} files found; Debian: apt-get install libpython3-stdlib). Use data=text"
            )
        return str(files[0].parent)

    def describe(self) -> str:
        return f"{self.title} {platform.python_version()}"

    def documents(self, part: Part) -> Iterator[str] | None:
        return read_files(standard_library(), "") if part == "train" else None

    def content_key(self) -> str:
        return digest_files(standard_library())
