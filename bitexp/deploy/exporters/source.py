"""The packed file of a run, or one that lies somewhere, as exporters take it."""

from __future__ import annotations

from pathlib import Path

from bitexp.common.errors import UserError
from bitexp.deploy.description import Description
from bitexp.deploy.exporters.exporter import Packed
from bitexp.deploy.load import find_run
from bitexp.deploy.packed_file import read_packed, unpack
from bitexp.kernels import as_kernel
from bitexp.track.folder import RunFolder


def read_source(path: Path) -> Packed:
    """Reads the packed file of a run, of the last run in a folder, or a packed file itself.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = find_run(path)
    name = path.stem
    if path.is_dir():
        name, path = f"{path.parent.name}/{path.name}", RunFolder(path).packed
        if not path.exists():
            raise UserError(f"there is no packed file {path}: the run has not finished")
    file = read_packed(path)
    model, preprocessing = unpack(path, file, as_kernel("reference"))
    return Packed(path, name, model, Description.of(file[0]["description"]), preprocessing)
