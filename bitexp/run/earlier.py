"""What earlier attempts at a run have left: whether it stands, and what becomes of it otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bitexp.common.errors import Damaged
from bitexp.common.format import path_text
from bitexp.run.attempt import Attempt
from bitexp.run.messages import closing, margin_remarks
from bitexp.track.checkpoint_files import BEST, LAST, PREVIOUS, latest_checkpoint
from bitexp.track.folder import is_over
from bitexp.track.provenance import source_fingerprint, version


@dataclass(frozen=True)
class Earlier:
    """The folder of a run as it was found; to look at it writes nothing."""

    attempt: Attempt
    result: dict[str, Any] | None
    spoiled: list[str]
    """What the result promises and is not there any more."""
    versions: list[str]
    """What made it, wholly or in part, and has another version now: bitexp, torch."""

    @staticmethod
    def of(attempt: Attempt) -> Earlier:
        """What there is now."""
        folder = attempt.folder
        result = folder.result()
        spoiled = [] if result is None else folder.spoiled(result)
        made = [*folder.attempts(), *([] if result is None else [result])]
        return Earlier(attempt, result, spoiled, list(other_versions(made)))

    @property
    def over(self) -> bool:
        """Whether there is nothing left to try."""
        return is_over(self.result)

    @property
    def stands(self) -> bool:
        """Whether there is nothing to do: it is over, not to be repeated, and whole or past mending."""
        again = self.attempt.settings.rerun
        repeated = bool(self.versions) if again == "older" else again
        return self.over and not repeated and not (self.spoiled and self.can_be_mended)

    @property
    def can_be_mended(self) -> bool:
        """Whether there is a checkpoint to make the files from again."""
        return any((self.attempt.folder.checkpoints / name).exists() for name in (LAST, PREVIOUS, BEST))

    def tell(self) -> dict[str, Any]:
        """Says that it stands, and what is to be known about it; returns its result."""
        result, report = self.result, self.attempt.report
        assert result is not None
        if self.versions:
            report.line(
                f"This run was made by a different version of {' and '.join(self.versions)}. "
                "Use rerun=true to repeat it."
            )
        if self.spoiled:
            report.line(
                f"{'; '.join(self.spoiled)}; no checkpoint is left to make it from again. Use rerun=true to "
                "train this run again."
            )
        for remark in margin_remarks(self.attempt.folder.attempts(), self.attempt.settings.report.margin):
            report.detail(f"{remark}.")
        closing(self.attempt, result, trained=False)
        return result

    def make_way(self) -> list[str]:
        """Moves it aside where it is to be repeated; else remarks about what is done with it."""
        folder, again = self.attempt.folder, self.attempt.settings.rerun
        if folder.path.exists() and (bool(self.versions) if again == "older" else again and self.restarts):
            place = path_text(folder.set_aside())
            self.attempt.report.line(f"rerun={str(again).lower()}: the earlier run was moved to {place}")
            return []
        return [f"{'; '.join(self.spoiled)}: made again from the checkpoint"] if self.spoiled else []

    @property
    def restarts(self) -> bool:
        """Whether `rerun=true` begins anew. A rerun that was killed continues, as any other run."""
        attempts = self.attempt.folder.attempts()
        if self.over or not attempts or not attempts[0].get("rerun"):
            return True
        try:
            latest_checkpoint(self.attempt.folder.checkpoints)
        except Damaged:
            return True
        return False


def other_versions(made: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """What has another version now than in these attempts and results, for people."""
    records = list(made)
    if any(record.get("source") != source_fingerprint() for record in records):
        yield "bitexp"
    versions = [record["versions"] for record in records if isinstance(record.get("versions"), Mapping)]
    others = {str(found["torch"]): None for found in versions if found.get("torch") != version("torch")}
    if others:
        yield f"torch ({', '.join(others)})"
