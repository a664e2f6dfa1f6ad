"""What is in files, by hashes that are kept: a file is read again only where it may have changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from filelock import FileLock

from bitexp.common.console import counting
from bitexp.common.errors import UserError
from bitexp.common.files import read_json, remove_scraps, write_atomic
from bitexp.data.cache import cache_folder, is_whole, sealed

FRESH = 2_000_000_000  # ns: some file systems count in steps of two seconds, so a second change may not show
AT_ONCE = 1024  # files
TOLD = 10  # files that are named, of those that cannot be used


def stamp(path: Path) -> tuple[int, int, int, int]:
    """What changes with a file: size, times and inode. The time of the last change cannot be set back."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def hash_file(path: Path) -> str:
    """A hash of what is in a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def content_hashes(
    root: Path, names: Sequence[str], unit: str, check: Callable[[Path], object] | None = None
) -> list[str]:
    """Hashes of files under a folder, in their order. One process reads them, the others wait for it.

    Args:
        unit: what the files are, for people; the hashes of each unit are kept apart.
        check: raises `UserError` for a file that cannot be used; called once for what is in a file.

    Raises:
        UserError: some files cannot be read or do not pass `check`; names them together.
    """
    name = hashlib.blake2b(str(root).encode(), digest_size=12).hexdigest()
    place = cache_folder() / "hashes" / f"{unit.replace(' ', '-')}-{name}.json"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # where nothing can be kept it takes its time, and that is all
            place.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(f"{place}.lock"))
        record = read_json(place) if place.is_file() else None
        kept: dict[str, list[Any]] = record["files"] if is_whole(record) else {}  # name -> [*stamp, hash]
        stamps: dict[str, tuple[int, ...]] = {}
        for name in names:
            with contextlib.suppress(OSError):  # told when it is opened
                stamps[name] = stamp(root / name)
        missing = [name for name in names if kept.get(name, [])[:-1] != list(stamps.get(name, [None]))]
        found: dict[str, str] = {}
        try:
            read_all(root, missing, unit, check, found)
        finally:  # what has been read stays, whatever came in between
            fresh = time.time_ns() - FRESH
            kept |= {
                name: [*stamps[name], hashed] for name, hashed in found.items() if stamps[name][2] < fresh
            }
            if found:
                keep(place, root, kept)
    return [found.get(name) or kept[name][-1] for name in names]


def read_all(
    root: Path,
    names: Sequence[str],
    unit: str,
    check: Callable[[Path], object] | None,
    found: dict[str, str],
) -> None:
    """Adds the hashes of files to `found`, on all processors. Raises `UserError` as `content_hashes` does."""

    def look(name: str) -> str | UserError:
        try:
            hashed = hash_file(root / name)  # before the check: what changes in between is seen next time
            if check is not None:
                check(root / name)
        except UserError as error:
            return error
        except OSError as error:
            return UserError(f"{root / name} cannot be read ({error.strerror or error})")
        return hashed

    errors: list[UserError] = []
    with counting(f"opening {root}", unit) as progress, ThreadPoolExecutor() as pool:
        for start in range(0, len(names), AT_ONCE):
            some = names[start : start + AT_ONCE]
            for name, result in zip(some, pool.map(look, some), strict=True):
                if isinstance(result, UserError):
                    errors.append(result)
                else:
                    found[name] = result
            progress(start + len(some))
    if errors:
        more = [f"and {len(errors) - TOLD:,} more"] if len(errors) > TOLD else []
        raise UserError("\n".join([*map(str, errors[:TOLD]), *more])) from errors[0]


def keep(place: Path, root: Path, kept: dict[str, list[Any]]) -> None:
    """Writes the hashes of those files that are still there, where that can be done."""
    present = {name: values for name, values in kept.items() if (root / name).exists()}
    with contextlib.suppress(OSError):
        remove_scraps(place.parent)
        write_atomic(place, json.dumps(sealed({"files": present})).encode())
