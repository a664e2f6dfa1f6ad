"""What is done for a finished run once its result is written, or later if a process was killed in between."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from bitexp.common.errors import describe_crash
from bitexp.run.attempt import Attempt
from bitexp.run.model_card import write_card
from bitexp.track.checkpoint_files import surplus


def may_tidy(attempt: Attempt) -> bool:
    """Whether a finished run has checkpoints that are not to be kept, or no card, and can be written to."""
    folder, keep = attempt.folder, attempt.settings.callbacks.checkpoint.keep
    result = folder.result() or {}
    untidy = bool(surplus(folder.checkpoints, keep)) or lacks_card(attempt, result)
    return result.get("status") == "finished" and untidy and os.access(folder.path, os.W_OK)


def tidy(attempt: Attempt, result: Mapping[str, Any]) -> None:
    """Removes the checkpoints that `callbacks.checkpoint.keep` does not keep; writes a missing card."""
    folder, report = attempt.folder, attempt.report
    if result["status"] != "finished":
        return
    try:
        for path in surplus(folder.checkpoints, attempt.settings.callbacks.checkpoint.keep):
            path.unlink(missing_ok=True)
    except OSError as error:
        report.line(f"checkpoints could not be removed: {error}")
    if lacks_card(attempt, result):
        try:
            write_card(attempt, result)
        except Exception as error:  # the result stands without it
            report.line(f"the model card could not be written: {describe_crash(error)['reason']}")


def lacks_card(attempt: Attempt, result: Mapping[str, Any]) -> bool:
    """Whether the card of a finished run is missing; runs before 2026-12 do not say all that it tells."""
    return "files" in result and not attempt.folder.card.exists()
