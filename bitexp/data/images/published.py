"""Data sets in files: where they are looked for, how they are fetched, what is said if missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import ClassVar

from filelock import FileLock

from bitexp.common.errors import UserError
from bitexp.data.base import Part
from bitexp.data.cache import home
from bitexp.data.hashes import stamp
from bitexp.data.images.base import ImageData
from bitexp.data.images.batches import ImagesInMemory

DEBIAN = Path("/usr/share/datasets")  # where Debian's packages dataset-* put theirs


class PublishedDataset(ImageData):
    """A published data set in files under fixed names."""

    folders: ClassVar[Sequence[str]]  # what people call its folder
    files: ClassVar[dict[Part, Sequence[str]]]  # file names of each part
    endings: ClassVar[Sequence[str]] = ("",)  # what may follow those names; the first found is read
    other_way: ClassVar[str] = ""  # to get it than a download, for people

    @classmethod
    def parse(cls, part: Part, files: Sequence[Path]) -> ImagesInMemory:
        """Reads one part. Raises `UserError` naming a file that is damaged."""
        raise NotImplementedError

    @classmethod
    def fetch(cls, root: Path) -> None:
        """Downloads into a folder of `folders` under `root`. Raises `OSError` or `RuntimeError`."""
        raise NotImplementedError

    def locate(self) -> str:
        return str(self.folder)

    @cached_property
    def folder(self) -> Path:
        """The folder that holds every file, downloaded if asked. Raises `UserError` without one."""
        if (folder := self._find()) is not None:
            return folder
        if not self.download:
            raise UserError(self._missing(""))
        root = self._roots()[0]
        name = self.folders[0].replace("/", "-")
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f".{name}.lock"):
                if self._find() is None:  # another process may have fetched it meanwhile
                    self._fetch_whole(root, root / f".{name}.part")
        except (OSError, RuntimeError) as error:
            raise UserError(self._missing(f" The download failed: {error}")) from error
        if (folder := self._find()) is None:
            raise UserError(self._missing(" The download is incomplete."))
        return folder

    def _fetch_whole(self, root: Path, scrap: Path) -> None:
        """Downloads beside the place, so that a process that is killed leaves no half of a file there."""
        shutil.rmtree(scrap, ignore_errors=True)
        scrap.mkdir()
        try:
            self.fetch(scrap)
            for path in sorted(path for path in scrap.rglob("*") if path.is_file()):
                place = root / path.relative_to(scrap)
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, place)
        finally:
            shutil.rmtree(scrap, ignore_errors=True)

    def read(self, part: Part) -> ImagesInMemory | None:
        if part not in self.files:
            return None
        files = self._files(self.folder, self.files[part])
        return _parse(self.parse, part, tuple(files), tuple(map(stamp, files)))

    def _roots(self) -> list[Path]:
        """Folders that may hold the data set's own folder; downloads go to the first."""
        if self.data_dir is not None:
            return [Path(self.data_dir).expanduser().absolute()]
        named = os.environ.get("BITEXP_DATA")
        roots = [Path(named).expanduser().absolute()] if named else []
        return [*roots, home() / ".cache" / "bitexp", Path("data").absolute(), DEBIAN]

    def _places(self) -> list[Path]:
        # bare roots only where one was named: MNIST and Fashion-MNIST have the same file names
        bare = self._roots() if self.data_dir is not None else []
        return [*bare, *(root / name for root in self._roots() for name in self.folders)]

    def _files(self, folder: Path, names: Sequence[str]) -> list[Path]:
        """Those of `names` that are in a folder, each with the first ending it is found under."""
        paths = [[folder / f"{name}{ending}" for ending in self.endings] for name in names]
        existing = [next((path for path in some if path.is_file()), None) for some in paths]
        return [path for path in existing if path is not None]

    @property
    def _names(self) -> list[str]:
        return [name for part in self.files.values() for name in part]

    def _find(self) -> Path | None:
        for place in self._places():
            if len(self._files(place, self._names)) == len(self._names):
                return place
        return None

    def _missing(self, reason: str) -> str:
        endings = "".join(f" (or {ending})" for ending in self.endings if ending)
        places = "\n".join(f"  {place}" for place in self._places())
        return (
            f"{self.title} was not found.{reason}\n"
            f"Looked for {', '.join(self._names)}{endings} in:\n{places}\n"
            f"Get it with {self.other_way}data.download=true, or name its folder: "
            "data.data_dir=FOLDER.\n"
            "Without any download: data=digits is embedded."
        )


@lru_cache(maxsize=2)  # the runs of one process mostly share a data set: its train and test parts
def _parse(
    parse: Callable[[Part, Sequence[Path]], ImagesInMemory],
    part: Part,
    files: tuple[Path, ...],
    stamps: tuple[tuple[int, ...], ...],  # a changed file is read again
) -> ImagesInMemory:
    return parse(part, files)
