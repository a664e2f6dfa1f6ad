"""What a study found is kept as the tuned setting of a precision, for `bitexp.config.tuned` to read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from bitexp.common.errors import UserError
from bitexp.common.files import write_atomic
from bitexp.config.tuned import KEYS
from bitexp.track.folder import UNIMPORTANT, outputs

NOT_FURTHER = ("experiment", "sweeps", "quantizer", "seed", "kernel", "trainer.threads", *UNIMPORTANT)
"""Keys of typed words that leave a setting what it is, with all below them."""


def check_tunes(swept: Iterable[str], typed: Iterable[str] = ()) -> None:
    """Raises `UserError` where nothing swept is kept, or a line cannot hold a typed word."""
    if not {f"optimizer.{key}" for key in KEYS} & set(swept):
        raise UserError(
            "hydra.sweeper.write_tuned=true needs a sweep over optimizer.lr or optimizer.weight_decay"
        )
    for word in further_choices(typed):
        if re.search(r"[\s:#'\"]", word):
            raise UserError(
                f"hydra.sweeper.write_tuned=true cannot write {word} into a line of conf/tuning: put it into "
                "an experiment of your own"
            )


def further_choices(typed: Iterable[str]) -> list[str]:
    """Of the words typed for a search those that a tuned setting depends on, in alphabetical order."""
    words = {word.lstrip("+") for word in typed}
    known = (*NOT_FURTHER, *(f"optimizer.{key}" for key in KEYS))
    return sorted(
        word
        for word in words
        if not f"{word.partition('=')[0]}.".startswith(tuple(f"{key}." for key in known))
    )


def write_tuned(
    name: str, precision: str, params: Mapping[str, Any], sources: Sequence[Any], typed: Iterable[str] = ()
) -> Path:
    """Puts a tuned setting into the experiment's file, in the place of that precision's line or at the end.

    Args:
        params: what a study drew; only learning rate and weight decay are kept; sources: where Hydra's
            configs come from. The first one that is a folder of files gets the file; typed: the words that
            all trials shared.

    Raises:
        UserError: nothing to keep, or no folder that can be written.
    """
    check_tunes(params)
    kept = {key: params[f"optimizer.{key}"] for key in KEYS if f"optimizer.{key}" in params}
    folder = next((Path(s.path) for s in sources if s.schema == "file" and os.access(s.path, os.W_OK)), None)
    if folder is None:
        raise UserError("no folder of configs can be written: give --config-dir=FOLDER")
    path = folder / "tuning" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    setting = ", ".join(f"{key}: {decimal(float(value))}" for key, value in kept.items())
    whole = " ".join([precision, *further_choices(typed)])
    outputs().mkdir(parents=True, exist_ok=True)
    with FileLock(outputs() / ".tuning.lock"):  # workers of one study, and several studies, end at once
        put_line(path, precision, whole, f"{whole}: {{{setting}}}")
    return path


def put_line(path: Path, precision: str, whole: str, line: str) -> None:
    """Puts a line into a file, in the place of that for the same precision and choices (`whole`)."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [old.partition(":")[0] for old in lines]
    if whole in names:
        place = end = names.index(whole)
        while end + 1 < len(lines) and lines[end + 1][:1] in (" ", "\t"):  # its setting, in lines of its own
            end += 1
        lines[place : end + 1] = [line]
    else:  # before lines for the precision with further choices, which are to win
        longer = (
            place
            for place, name in enumerate(names)
            if name.split()[:1] == [precision] and len(name.split()) > len(whole.split())
        )
        lines.insert(next(longer, len(lines)), line)
    write_atomic(path, ("\n".join(lines) + "\n").encode())


def decimal(value: float) -> str:
    """Three digits, with the point that YAML wants to see in a number: 1.0e-05."""
    digits, *exponent = repr(float(f"{value:.3g}")).partition("e")
    return "".join([digits if "." in digits else f"{digits}.0", *exponent])
