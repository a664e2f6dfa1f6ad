"""Your own text: files, or the lines of JSONL files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitexp.common.errors import UserError
from bitexp.data.base import PARTS, Part
from bitexp.data.registry import DATA
from bitexp.data.text.base import TextData
from bitexp.data.text.documents import digest_files, matching_files, read_files


@DATA.register("text")
class TextFiles(TextData):
    """Text files (each a document) and JSONL files (each line one, under the key `field`)."""

    title = "text files"

    def __init__(
        self,
        *,
        files: list[str] | None,
        val_files: list[str] | None,
        test_files: list[str] | None,
        field: str,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.patterns: dict[Part, list[str] | None] = {"train": files, "val": val_files, "test": test_files}
        self.field = field

    def locate(self) -> str:
        if not self.patterns["train"]:
            raise UserError(
                "data=text needs the files of your text: 'data.files=[books/*.txt]' (text files, JSONL "
                "files, folders or patterns). Without text of your own: data=stdlib is embedded"
            )
        return ", ".join(sorted({str(path.parent) for path in self.paths("train")}))

    def paths(self, part: Part) -> list[Path]:
        """The files of a part."""
        key = "data.files" if part == "train" else f"data.{part}_files"
        return matching_files(self.patterns[part] or [], key)

    def describe(self) -> str:
        files = [path for part in PARTS for path in self.paths(part)]
        return files[0].name if len(files) == 1 else f"{len(files)} files"

    def documents(self, part: Part) -> Iterator[str] | None:
        return None if self.patterns[part] is None else read_files(self.paths(part), self.field)

    def content_key(self) -> str:
        digests = {part: digest_files(self.paths(part)) for part in PARTS if self.patterns[part] is not None}
        return json.dumps([digests, self.field])
