"""Where text comes from: the standard library's own source, files on this machine, Hugging Face data sets."""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import os
import sysconfig
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bitexp.common.errors import UserError

LINES = (".jsonl", ".ndjson")
LEFT_OUT = {
    # what is no program, repeats itself, or is packed apart by some systems
    "test", "tests", "idle_test", "encodings", "lib2to3", "idlelib", "ensurepip", "pydoc_data",
    "site-packages", "dist-packages", "__pycache__",
}  # fmt: skip


@functools.cache
def standard_library() -> tuple[Path, ...]:
    """The Python files of the standard library without tests and tables, sorted; the same on any machine
    with the same version of Python."""
    root = Path(sysconfig.get_path("stdlib"))
    files: list[Path] = []
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if name not in LEFT_OUT]
        files += [Path(folder, n) for n in names if n.endswith(".py") and not n.startswith("_sysconfigdata")]
    return tuple(sorted(files, key=lambda path: path.relative_to(root)))


def matching_files(patterns: Sequence[str], key: str) -> list[Path]:
    """The files that paths, folders and wildcards name, sorted, each once.

    Raises:
        UserError: a pattern names nothing; `key` says which one it is.
    """
    files: set[Path] = set()
    for pattern in patterns:
        path = Path(pattern).expanduser()
        plain = glob.escape(str(path))  # a name may hold brackets itself
        wanted = f"{plain}/**/*" if path.is_dir() else plain if path.exists() else str(path)
        matches = {Path(name) for name in glob.glob(wanted, recursive=True) if Path(name).is_file()}
        if not matches:
            raise UserError(
                f"{key}: there is no file '{pattern}' (looked for {path.absolute()}); name a text file, a "
                "JSONL file, a folder, or a pattern such as 'books/*.txt'. Without one: data=stdlib"
            )
        files |= matches
    return sorted(files)


def read_files(paths: Sequence[Path], field: str) -> Iterator[str]:
    """The documents in files: each text file is one, and each line of a JSONL file, under the key `field`.

    Raises:
        UserError: naming file and place where something is not UTF-8 or no such record.
    """
    for path in paths:
        if path.suffix in LINES:
            yield from read_lines(path, field)
        else:
            yield decode(path.read_bytes(), str(path))


def read_lines(path: Path, field: str) -> Iterator[str]:
    """The documents in a JSONL file."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                record = json.loads(decode(line.rstrip(), where))
            except ValueError as error:
                reason = str(error).replace("line 1 column", "column")
                raise UserError(f"{where} is not JSON: {reason}") from None
            if not isinstance(record, dict) or not isinstance(record.get(field), str):
                keys = ", ".join(record) if isinstance(record, dict) else "none"
                raise UserError(f"{where} has no text under '{field}' (data.field). Its keys: {keys}")
            try:
                record[field].encode()
            except UnicodeEncodeError:  # JSON can write it, UTF-8 cannot
                raise UserError(
                    f"{where} contains half a character (a lone surrogate) under '{field}'"
                ) from None
            yield record[field]


def decode(content: bytes, where: str) -> str:
    """Text from UTF-8. Raises `UserError` naming the first byte that is not."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8: byte 0x{content[error.start]:02x} at position {error.start:,}. Convert "
            "it, for example with `iconv -f latin1 -t utf-8`, or leave it out"
        ) from None


def digest_files(paths: Sequence[Path]) -> str:
    """A hash of what is in the files, in their order; whatever they are called."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest() + path.suffix.encode())
    return digest.hexdigest()


def stream_huggingface(
    path: str, name: str | None, split: str, revision: str | None, field: str, limit: int | None
) -> Iterator[str]:
    """The documents of a Hugging Face data set, or of a folder that holds one, streamed.

    Raises:
        UserError: the library is missing, or it cannot give the data set, with its reason.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            'data=huggingface needs the package datasets: pip install "bitexp[huggingface]"'
        ) from None
    try:
        rows: Any = open_huggingface(datasets, path, name, split, revision)
        for number, row in enumerate(rows if limit is None else rows.take(limit)):
            if not isinstance(row.get(field), str):
                raise UserError(
                    f"row {number} of {path} has no text under '{field}' (data.field). "
                    f"Its columns: {', '.join(row)}"
                )
            yield row[field]
    except UserError:
        raise
    except Exception as error:  # network, missing names, broken files: each library layer has its own
        if isinstance(error, MemoryError):
            raise
        reason = textwrap.shorten(str(error), 400) or type(error).__name__
        raise UserError(
            f"the Hugging Face data set {path} (split {split}) cannot be read: {reason.rstrip('.')}. "
            "Without network: data=stdlib is embedded"
        ) from None


def open_huggingface(datasets: Any, path: str, name: str | None, split: str, revision: str | None) -> Any:
    """The rows: of a folder from `save_to_disk`, of a folder of data files, or of a data set on the hub."""
    folder = Path(path).expanduser()
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        saved = datasets.load_from_disk(str(folder))
        parts = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
        if split not in parts:
            raise UserError(f"{path} has no split '{split}'. Its splits: {', '.join(parts)}")
        return parts[split].to_iterable_dataset()
    where = str(folder) if folder.exists() else path
    return datasets.load_dataset(where, name, split=split, revision=revision, streaming=True)
