"""The runs of a sweep as values, and as the fewest commands that make some of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bitexp.claims.definition import Sweep
from bitexp.common.format import value_text


@dataclass(frozen=True)
class Cell:
    """A run that answers a question: what is typed for it, and which choice of each axis it is."""

    words: tuple[str, ...]
    """All but the seed."""
    place: tuple[str, ...]
    seed: int

    @property
    def typed(self) -> tuple[str, ...]:
        """All words of the run."""
        return (*self.words, f"seed={self.seed}")


def settings(sweep: Sweep) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Each combination of choices: its place, and its words."""
    for combination in itertools.product(*(axis.items() for axis in sweep.axes.values())):
        words = list(sweep.words)
        for key, (_, value) in zip(sweep.axes, combination, strict=True):
            words += words_of(key, value)
        yield tuple(label for label, _ in combination), tuple(words)


def words_of(key: str, value: Any) -> list[str]:
    """What is typed for a choice of an axis."""
    return [str(word) for word in value] if isinstance(value, list) else [f"{key}={value_text(value)}"]


def tuning_cells(sweep: Sweep) -> dict[tuple[str, ...], list[Cell]]:
    """The runs that tune, by the place that they are made for; places that share theirs have the same."""
    if sweep.tune is None:
        return {}
    first = {axis: next(iter(choices)) for axis, choices in sweep.axes.items()} | sweep.tune.at
    tuned = tuple(sweep.axes) if sweep.tune.per is None else sweep.tune.per
    words = dict(settings(sweep))
    found = {}
    for place in words:
        pairs = zip(sweep.axes, place, strict=True)
        at = tuple(label if axis in tuned else first[axis] for axis, label in pairs)
        found[place] = [
            Cell((*words[at], f"{sweep.tune.key}={value_text(value)}"), at, sweep.tune.seed)
            for value in sweep.tune.values
        ]
    return found


def cells(sweep: Sweep, chosen: Mapping[tuple[str, ...], str | None]) -> Iterator[Cell]:
    """The runs that are compared, but for those of places that are not tuned yet.

    Args:
        chosen: the word that tuning found for each place; None: not yet.
    """
    for place, words in settings(sweep):
        if sweep.tune is not None:
            if (word := chosen.get(place)) is None:
                continue
            words = (*words, word)
        for seed in range(sweep.seeds):
            yield Cell(words, place, seed)


def count(sweep: Sweep) -> int:
    """How many runs a sweep has, those that tune with it."""
    tuning = {cell.typed for group in tuning_cells(sweep).values() for cell in group}
    return len(tuning) + sweep.seeds * len(list(settings(sweep)))


def commands(wanted: Iterable[tuple[str, ...]]) -> list[list[str]]:
    """Words of multiruns that make these runs and no others, in about their order.

    Runs that differ in the value of one key alone become one word with several values, again and again.
    """
    boxes: list[Box] = [tuple((word,) for word in words) for words in dict.fromkeys(wanted)]
    for length in {len(box) for box in boxes}:
        for position in reversed(range(length)):
            boxes = merged(boxes, position, length)
    return [["=".join((key_of(box[0]), ",".join(map(value_of, box)))) for box in boxed] for boxed in boxes]


Box = tuple[tuple[str, ...], ...]
"""For each word the words of one key that take its place."""


def merged(boxes: list[Box], position: int, length: int) -> list[Box]:
    """Boxes of so many words that differ at one position alone, in the same key, made one."""
    groups: dict[Any, list[str]] = {}
    for number, box in enumerate(boxes):
        if len(box) != length:
            groups[number] = []
            continue
        rest = (box[:position], key_of(box[position][0]), box[position + 1 :])
        groups.setdefault(rest, []).extend(box[position])
    joined = []
    for rest, values in groups.items():
        joined.append(boxes[rest] if isinstance(rest, int) else (*rest[0], tuple(values), *rest[2]))
    return joined


def key_of(word: str) -> str:
    """What stands before the equals sign."""
    return word.partition("=")[0]


def value_of(word: str) -> str:
    """What stands after it."""
    return word.partition("=")[2]
