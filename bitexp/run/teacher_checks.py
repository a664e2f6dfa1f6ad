"""What has to hold between a teacher, its student and the data, beyond shapes; told before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from bitexp.common.errors import UserError
from bitexp.data.base import Data
from bitexp.deploy.sources import Source
from bitexp.run.start_checks import words_of

KEY = "distill.teacher"
UNITS = ("divide_by", "mean", "std")
NEAR = 1.2
"""By so much a deviation, and by a fifth of one a mean, may be off."""


def check_tokenizer(source: Source, data: Data) -> None:
    """Raises `UserError` where the same number stands for other words in the teacher's vocabulary."""
    theirs, ours = source.tokenizer, data.preprocessing().get("tokenizer")
    if theirs is None or ours is None:
        return
    if words_of(theirs, source.text) != words_of(ours, "the data"):
        raise UserError(
            f"{KEY}={source.text} reads another vocabulary than these data are written in; "
            "use its tokenizer (data.tokenizer=FILE), or another teacher"
        )


def check_images(source: Source, data: Data) -> None:
    """Raises `UserError` where the teacher knows other classes, or has seen images in other units.

    Mean and deviation of the training part may differ by as much as other parts of the same data do.
    """
    theirs, ours = source.preprocessing, data.preprocessing()
    pairs = zip_longest(theirs.get("class_names") or [], ours.get("class_names") or [])
    if "class_names" in theirs and "class_names" in ours:
        for one, other in pairs:
            if one != other:
                raise UserError(
                    f"{KEY}={source.text} has learned other classes than those of the data: what is {one} "
                    f"there is {other} here"
                )
    if not all(key in known for key in UNITS for known in (theirs, ours)):
        return
    scale = ours["divide_by"] / theirs["divide_by"]
    channels = zip(theirs["mean"], theirs["std"], ours["mean"], ours["std"], strict=True)
    for mean, deviation, own_mean, own_deviation in channels:
        ratio, shift = deviation / (scale * own_deviation), abs(mean - scale * own_mean) / deviation
        if not (1 / NEAR < ratio < NEAR and shift < NEAR - 1):
            raise UserError(
                f"{KEY}={source.text} was given images of mean {mean:.3g} and deviation {deviation:.3g} "
                f"as 0 and 1, and those of these data are taken to have {own_mean:.3g} and "
                f"{own_deviation:.3g}; use the same data.normalize"
            )


def check_same_teacher(now: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]]) -> None:
    """Raises `UserError` where a run that resumes has learned from other weights than the source has now.

    Args:
        now: what provenance will say of the teacher; empty where there is none.
    """
    before = attempts[-1].get("teacher") if attempts else None
    if before is not None and now and before.get("digest") != now["digest"]:
        raise UserError(
            f"{KEY}={now['path']} holds other weights than those that this run has learned from, and it is "
            "not finished. Restore them and the same command continues it, or use rerun=true to begin anew"
        )
