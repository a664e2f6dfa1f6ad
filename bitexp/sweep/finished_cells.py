"""Cells of a grid that are known to be finished, so that they are passed in milliseconds.

To compose a config, to build its model and to fingerprint its data takes a tenth of a second, for a run that
is there already. So `outputs/.cells.json` keeps which words led to which run. It counts as long as nothing
has changed that the way from the words to the run depends on: the source of bitexp and its extensions, every
YAML, the variables that YAML reads, and the data, whose fingerprint is taken once for each way to load them.
It also keeps which jobs a sweep has begun, so that the next command finds what has ended after that sweep was
left in a queue or was killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from bitexp.common.errors import UserError
from bitexp.common.files import read_json, write_atomic
from bitexp.config.context import context
from bitexp.report.runs import read_config
from bitexp.track.folder import RunFolder, outputs
from bitexp.track.provenance import source_fingerprint


class FinishedCells:
    """The cells that are known.

    Args:
        folders: where configs are; words: of the multirun, of which some are swept.
    """

    def __init__(self, folders: Iterable[Path], words: Sequence[str]) -> None:
        self.context = context(folders, words)
        self.file = outputs() / ".cells.json"
        self.of_other_source = 0
        """How many of those that were found were made by a different version of bitexp."""
        self._fingerprints: dict[str, str | None] = {}

    @cached_property
    def cells(self) -> dict[str, Any]:
        """By the key of its words, the run of each cell and its data."""
        return self._content()["cells"]

    def _content(self) -> dict[str, dict[str, Any]]:
        """What the file keeps: cells, and by their folders the numbers of jobs that sweeps have begun."""
        try:
            known = read_json(self.file)
        except OSError:  # the runs will say what is wrong with the place
            known = None
        if not isinstance(known, dict) or known.get("context") != self.context:
            known = {}
        return {part: dict(known.get(part, {})) for part in ("cells", "begun")}

    def record(self, words: Sequence[str]) -> dict[str, Any] | None:
        """What the job of a finished cell would record; None where it is not known to be finished."""
        cell = self.cells.get(key(words))
        if cell is None:
            return None
        folder = RunFolder(outputs() / cell["run"])
        result = folder.result()
        if result is None or result["status"] != "finished" or folder.spoiled(result):
            return None
        if not folder.card.exists():  # its process was killed before it was written: the road writes it
            return None
        if self._fingerprint(cell["data"], result["seed"]) != cell["fingerprint"]:
            return None
        self.of_other_source += result["source"] != source_fingerprint()
        return {
            "overrides": list(words),
            "tuned": cell["tuned"],
            "status": "finished",
            "kind": result["kind"],
            "reason": result["reason"],
            "run": str(folder.path),
            "trained": False,
            "metrics": result["metrics"],
            "headline": result["headline"],
        }

    def begin(self, sweep: Path, numbers: Sequence[int]) -> None:
        """Keeps that a sweep makes jobs, whoever sees their ends: it may be left, or killed."""
        for number in numbers if (sweep / "jobs").is_dir() else ():
            (sweep / "jobs" / f"{number}.json").unlink(missing_ok=True)  # of an earlier sweep in this folder
        with contextlib.suppress(OSError), self._lock():
            content = self._content()
            content["begun"][str(sweep.absolute())] = list(numbers)
            self._write(content)

    def collect(self) -> None:
        """Keeps the cells of jobs that have finished, in this sweep and in those that were left."""
        if not self._content()["begun"]:
            return
        with contextlib.suppress(OSError), self._lock():
            content = self._content()
            begun, content["begun"] = content["begun"], {}
            for sweep, numbers in begun.items():
                open_ones = []
                for number in numbers:
                    record = read_json(Path(sweep) / "jobs" / f"{number}.json")
                    if not isinstance(record, dict):
                        open_ones.append(number)
                    elif record["status"] == "finished" and (cell := cell_of(Path(record["run"]))):
                        content["cells"][key(record["overrides"])] = cell
                if open_ones and Path(sweep).is_dir():
                    content["begun"][sweep] = open_ones
            self._write(content)

    def _lock(self) -> FileLock:
        return FileLock(self.file.with_suffix(".lock"))

    def _write(self, content: Mapping[str, Any]) -> None:
        write_atomic(self.file, json.dumps({"context": self.context, **content}).encode())
        vars(self).pop("cells", None)

    def _fingerprint(self, text: str, seed: int) -> str | None:
        """That of the data as they are now; None where they cannot be read."""
        if text not in self._fingerprints:
            from bitexp.data import DATA

            options = json.loads(text)
            try:
                data = DATA.get(options.pop("name"))(seed=seed, **options)
                self._fingerprints[text] = data.fingerprint()
            except (UserError, OSError, TypeError, ValueError):
                self._fingerprints[text] = None
        return self._fingerprints[text]


def cell_of(run: Path) -> dict[str, Any] | None:
    """What is kept of a cell; None where its words alone do not say what it is."""
    try:
        config = read_config(run)
        attempt = RunFolder(run).attempts()[-1]
        place = str(run.relative_to(outputs()))
    except (OSError, ValueError, IndexError):
        return None
    rest = {name: described(value) for name, value in config.items() if name != "data"}
    if config["rerun"] or any(names_a_file(value) for value in strings(rest)):
        return None  # what is in that file counts, and may change
    data = json.dumps(config["data"], sort_keys=True)
    return {"run": place, "tuned": config["tuned"], "data": data, "fingerprint": attempt["data"]}


def described(value: Any) -> Any:
    """A section without the folders of runs that the words describe, which are what their ids say."""
    if not isinstance(value, dict):
        return value
    if value.get("run") is not None and value.get("identity"):
        value = value | {"from": None}
    return {key: described(inner) for key, inner in value.items()}


def strings(value: Any) -> Iterable[str]:
    """All texts in a nested value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from strings(inner)


def names_a_file(text: str) -> bool:
    """Whether a text is the path of something."""
    try:
        return bool(text) and Path(text).expanduser().exists()
    except (OSError, RuntimeError):
        return False


def key(words: Sequence[str]) -> str:
    """The key of the words of a job."""
    return hashlib.sha256(json.dumps(list(words)).encode()).hexdigest()[:24]
