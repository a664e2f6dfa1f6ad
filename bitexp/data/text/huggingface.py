"""Hugging Face data sets, from the hub or from a folder, streamed once into tokens on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitexp.common.checks import at_least
from bitexp.common.errors import UserError
from bitexp.data.base import Part
from bitexp.data.registry import DATA
from bitexp.data.text.base import TextData
from bitexp.data.text.documents import stream_huggingface


@DATA.register("huggingface")
class HuggingFace(TextData):
    """One column of text of a data set of the library `datasets`.

    What was read is kept, and read again only for another path, subset, split, revision, field or number
    of documents; a folder also when its files change.
    """

    title = "Hugging Face data set"

    def __init__(
        self,
        *,
        path: str | None,
        subset: str | None,
        revision: str | None,
        split: str,
        val_split: str | None,
        test_split: str | None,
        field: str,
        documents_limit: int | None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if documents_limit is not None:
            at_least("documents_limit", documents_limit, 1)
        self.path, self.subset, self.revision, self.field = path, subset, revision, field
        self.splits: dict[Part, str | None] = {"train": split, "val": val_split, "test": test_split}
        self.documents_limit = documents_limit

    def locate(self) -> str:
        if self.path is None:
            raise UserError(
                "data=huggingface needs the name of a data set, or a folder that holds one: "
                "data.path=roneneldan/TinyStories. Without network: data=stdlib is embedded"
            )
        return self.path

    def describe(self) -> str:
        return self.locate() if self.subset is None else f"{self.path} ({self.subset})"

    def documents(self, part: Part) -> Iterator[str] | None:
        split = self.splits[part]
        if split is None:
            return None
        limit = self.documents_limit if part == "train" else None
        return stream_huggingface(self.locate(), self.subset, split, self.revision, self.field, limit)

    def content_key(self) -> str:
        folder = Path(self.locate()).expanduser()
        files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
        stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        names = [self.path, self.subset, self.revision, self.splits, self.field, self.documents_limit]
        return json.dumps([names, stamps])
