"""Hugging Face data sets, from the hub or from a folder, streamed once into tokens on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from bitexp.common.checks import at_least
from bitexp.common.errors import UserError
from bitexp.data.base import Part
from bitexp.data.hashes import content_hashes
from bitexp.data.registry import DATA
from bitexp.data.text.base import TextData
from bitexp.data.text.documents import stream_huggingface
from bitexp.data.text.hub import Commit, find_commit


@DATA.register("huggingface")
class HuggingFace(TextData):
    """One column of text of a data set of the library `datasets`.

    What was read is kept, and read again only for another path, subset, split, field or number of documents,
    and when the data change: a data set on the hub by its commit, a folder by what is in its files.
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

    @classmethod
    def hub_name(cls, arguments: Mapping[str, Any]) -> str | None:
        path = arguments.get("path")
        return path if isinstance(path, str) and not Path(path).expanduser().exists() else None

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
        return stream_huggingface(self.locate(), self.subset, split, self._revision, self.field, limit)

    @cached_property
    def commit(self) -> Commit | None:
        """What is read of a data set on the hub; None: it is a folder."""
        return None if self._folder.exists() else find_commit(self.locate(), self.revision)

    @property
    def _revision(self) -> str | None:
        return (self.commit and self.commit.id) or self.revision

    @property
    def _folder(self) -> Path:
        return Path(self.locate()).expanduser()

    def content_key(self) -> str:
        files = (path for path in self._folder.rglob("*") if path.is_file())
        names = sorted(path.relative_to(self._folder).as_posix() for path in files)
        hashes = content_hashes(self._folder, names, "files") if names else []
        what = [self.path, self.subset, self._revision, self.splits, self.field, self.documents_limit]
        return json.dumps([what, list(zip(names, hashes, strict=True))])

    def remarks(self) -> str:
        if self.commit is None:
            return super().remarks()
        commit = f"commit {self.commit.id[:12]}" if self.commit.id else "commit not known"
        state = "" if self.commit.asked else " (the hub did not answer: data as last read)"
        return f"{super().remarks()}; {commit}{state}"
