"""What two runs differ in: config, data, code, environment, metrics, curves and files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bitexp.report.columns import Column, Table, cell_text
from bitexp.report.runs import Run, flattened
from bitexp.track.folder import UNIMPORTANT, is_number

NOT_COMPARED = ("started", "command", "pid", "seed", "data", "code", "files", "uncommitted")
"""What an attempt says of itself alone, or what stands in another part."""
ABSENT = "-"


@dataclass(frozen=True)
class Difference:
    """One thing in which two runs differ: what each of them has, None for nothing, and a note."""

    name: str
    first: Any
    second: Any
    note: str = ""


Differences = dict[str, list[Difference]]
"""By the part of a run: empty where both agree."""


def differences(first: Run, second: Run) -> Differences:
    """All that two runs differ in."""
    code = [key for one in (first, second) for key in one.flat if key.endswith(".code")]
    config, sources = (
        ({key: value for key, value in run.flat.items() if key not in code} for run in (first, second)),
        ({key: run.flat.get(key) for key in code} for run in (first, second)),
    )
    return {
        "config": [unlike_config(one) for one in unlike(*config)],
        "data": list(unlike({"fingerprint": first.data}, {"fingerprint": second.data})),
        "code": list(unlike(*sources)),
        "environment": list(unlike(environment(first), environment(second))),
        "metrics": [with_difference(one) for one in unlike(metrics(first), metrics(second))],
        "curves": list(curves(first, second)),
        "files": list(unlike(files(first), files(second))),
    }


def unlike(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Difference]:
    """The keys whose values differ, in the order in which they are met."""
    for key in dict.fromkeys([*first, *second]):
        a, b = first.get(key), second.get(key)
        if (type(a), a) != (type(b), b):
            yield Difference(key, a, b)


def unlike_config(one: Difference) -> Difference:
    """Says of a key that it is no part of a run's identity."""
    free = any(f"{one.name}.".startswith(f"{key}.") for key in UNIMPORTANT)
    return Difference(one.name, one.first, one.second, "not in the id" if free else "")


def with_difference(one: Difference) -> Difference:
    """Says by how much a number differs."""
    if not (is_number(one.first) and is_number(one.second)):
        return one
    return Difference(one.name, one.first, one.second, f"{one.second - one.first:+.4g}")


def environment(run: Run) -> dict[str, Any]:
    """Where and by what the last attempt at a run was made."""
    attempt = {key: value for key, value in run.attempt.items() if key not in NOT_COMPARED}
    return flattened(attempt)


def metrics(run: Run) -> dict[str, Any]:
    """How a run ended, and what it measured."""
    more = {key: run.result.get(key) for key in ("reason", "steps", "weights", "step_ms", "seconds")}
    return {"status": run.status, **run.metrics, **more}


def files(run: Run) -> dict[str, str]:
    """The checksums of its files, but for that of its config, which is compared key by key."""
    kept = run.result.get("files")
    kept = kept if isinstance(kept, Mapping) else {}
    return {str(name): str(digest)[:10] for name, digest in kept.items() if name != "config.yaml"}


def curves(first: Run, second: Run) -> Iterator[Difference]:
    """Where each curve of both runs parts, with its last values; and which curves one of them lacks.

    What was measured once is no curve, but stands among the metrics.
    """
    for name in dict.fromkeys([*first.curves, *second.curves]):
        ours, theirs = (dict(run.curves.get(name, [])) for run in (first, second))
        if ours == theirs or max(len(ours), len(theirs)) < 2:
            continue
        yield Difference(name, last(ours), last(theirs), parting(ours, theirs))


def last(curve: Mapping[int, float]) -> float | None:
    """The last value of a curve; None where there is none."""
    return list(curve.values())[-1] if curve else None


def parting(first: Mapping[int, float], second: Mapping[int, float]) -> str:
    """From which step on two curves differ, and how far they come apart."""
    if not first or not second:
        return f"only in the {'first' if first else 'second'} run"
    common = [step for step in first if step in second]
    if not common:
        return "no step in common"
    apart = [step for step in common if first[step] != second[step]]
    if not apart:
        return f"the same up to step {max(common):,}"
    widest = max(apart, key=lambda step: abs(first[step] - second[step]))
    return (
        f"from step {apart[0]:,} on; furthest apart at {widest:,}: {abs(first[widest] - second[widest]):.3g}"
    )


def table_of(part: str, found: list[Difference], names: tuple[str, str]) -> Table:
    """The differences of one part as a table."""

    def text(value: Any) -> str:
        return ABSENT if value is None else cell_text(value, 6)

    columns = (
        Column(part, part, lambda one: one.name, lambda one: one.name, number=False),
        Column(names[0], "first", lambda one: text(one.first), lambda one: one.first, number=False),
        Column(names[1], "second", lambda one: text(one.second), lambda one: one.second, number=False),
        Column("", "note", lambda one: one.note, lambda one: one.note, number=False),
    )
    return Table(part, columns, tuple(found)).up_to()
