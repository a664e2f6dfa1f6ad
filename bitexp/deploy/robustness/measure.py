"""All that is measured of a run under flipped bits, as metrics by name."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitexp.common.errors import UserError
from bitexp.common.randomness import generator
from bitexp.deploy.packed_file import read_packed, unpack
from bitexp.deploy.robustness.detection import found_in_file, found_without_checksum
from bitexp.deploy.robustness.search import Attack, flipped, progressive_search, random_places
from bitexp.deploy.robustness.stored import Reading, Stored
from bitexp.deploy.score import Samples, Score
from bitexp.kernels.reference import Reference

RANDOM = (10, 100, 1000)
"""How many bits are flipped at random."""
CHANCE = 1.1
"""An accuracy of so many times that of a guess is chance: 11 % of ten classes, as in arXiv 1903.12269."""


@dataclass(frozen=True)
class Options:
    """What is asked for.

    Args:
        layout: of the codes; None: as the file has them.
        batches: searches, each with a batch of its own, of `batch` samples (None: what suits the data).
        flips: of a search at most.
        seeds: draws of random flips.
        samples: of the test part, on which quality is measured; None: what suits the data.
        trials: flips of which it is asked whether they are found.
    """

    layout: str | None = None
    batches: int = 3
    batch: int | None = None
    flips: int = 100
    seeds: int = 5
    samples: int | None = None
    trials: int = 200


def attacked(path: Path, samples: Samples, options: Options, tell: Callable[[str], None]) -> dict[str, float]:
    """The metrics of a packed file: `attack/SET/...`, or `attack_LAYOUT/SET/...` where another was asked for.

    SET is `codes`, the weights of the body, or `all`, every tensor of the file. Where there are bytes that no
    codes make, they are read as the integers that they come to; as `codes_clamped` it is measured what comes
    of it where they are read as the highest code instead.

    Args:
        samples: of the test part.
        tell: gets a line about each step.

    Raises:
        UserError: the file is damaged, or the layout cannot hold its codes.
    """
    file = read_packed(path)
    prefix = "attack" if options.layout is None else f"attack_{options.layout}"
    metrics: dict[str, float] = {}

    def fresh(reading: Reading | None) -> Stored:
        model, _ = unpack(path, file, Reference())
        stored = Stored(model, file[0]["body"])
        if options.layout is not None:
            try:
                stored.relaid(options.layout)
            except ValueError as error:
                raise UserError(f"{path} cannot be packed as {options.layout}: {error}") from None
        if reading is not None:
            stored.read_as(reading)
        return stored

    stored = fresh(None)
    clean = samples.score(stored.model)
    classes = stored.model(samples.inputs[:1]).shape[-1]
    metrics |= {f"{prefix}/accuracy": clean.accuracy, f"{prefix}/loss": clean.loss}
    if options.layout is None:
        sets = {"codes": [name for name in stored.codes if name in file[1]], "all": list(file[1])}
        metrics["attack/found"] = found_in_file(path, options.trials)
        for name, tensors in sets.items():
            metrics[f"attack/{name}/found"] = found_without_checksum(file, tensors, options.trials)
    readings: dict[str, Reading] = {"": "value"}
    if stored.gaps:
        readings["_clamped"] = "clamp"
    for suffix, reading in readings.items():
        stored = fresh(reading)
        for name, tensors in {"codes": stored.codes, "all": stored.names}.items():
            place = f"{prefix}/{name}{suffix}"
            if place.endswith("all_clamped"):
                continue
            tell(f"{place}: random flips")
            metrics |= under_random_flips(place, stored, tensors, samples, options.seeds)
            attacks = []
            for number in range(options.batches):
                batch = samples.drawn(options.batch or len(samples), generator("attack", number))
                copy = fresh(reading)
                attacks.append(search(copy, tensors, batch, samples, classes, options.flips))
                tell(f"{place}: search {number + 1} of {options.batches}, {told(attacks[-1])}")
            metrics |= summary(place, attacks)
    return metrics


def search(
    stored: Stored, names: list[str], batch: Samples, samples: Samples, classes: int, flips: int
) -> Attack:
    """The search until predictions are those of chance, or the loss of text is that of a guess.

    A loss that is no finite number counts as that, too: there is nothing left that could raise it.
    """

    def reached(score: Score) -> bool:
        if not math.isfinite(score.loss):
            return True
        if samples.targets.dim() == 1:
            return score.accuracy <= CHANCE / classes
        return score.loss >= math.log(classes)

    def score() -> Score:
        return samples.score(stored.model)

    return progressive_search(stored, names, batch, score, reached, flips)


def told(attack: Attack) -> str:
    """How a search ended, in words."""
    accuracy = f"accuracy {attack.scores[-1].accuracy:.3f}" if attack.scores else "nothing raises the loss"
    return f"{len(attack.places)} flips, {accuracy}"


def summary(place: str, attacks: Sequence[Attack]) -> dict[str, float]:
    """Flips to chance as mean and deviation, and the accuracy then.

    Of searches that did not get there it is the flips that they made.
    """
    flips = [float(len(attack.places)) for attack in attacks]
    metrics = {
        f"{place}/flips_to_chance": statistics.fmean(flips),
        f"{place}/reached": statistics.fmean(attack.reached for attack in attacks),
    }
    if all(attack.scores for attack in attacks):
        metrics[f"{place}/accuracy_chosen"] = statistics.fmean(a.scores[-1].accuracy for a in attacks)
    if len(flips) > 1:
        metrics[f"{place}/flips_to_chance_std"] = statistics.stdev(flips)
    return metrics


def under_random_flips(
    place: str, stored: Stored, names: list[str], samples: Samples, seeds: int
) -> dict[str, float]:
    """Loss and accuracy after random flips: means and deviations over draws.

    Of losses, some of which may be no finite number, it is the median.
    """
    metrics: dict[str, float] = {}
    for count in RANDOM:
        if count > stored.bits(names):
            continue
        scores = []
        for seed in range(seeds):
            with flipped(stored, random_places(stored, names, count, seed)):
                scores.append(samples.score(stored.model))
        found: dict[str, Any] = {
            key: [asdict(score)[key] for score in scores] for key in ("loss", "accuracy")
        }
        losses = [math.inf if math.isnan(loss) else loss for loss in found["loss"]]
        metrics[f"{place}/loss_{count}"] = statistics.median(losses)
        metrics[f"{place}/accuracy_{count}"] = statistics.fmean(found["accuracy"])
        if seeds > 1:
            metrics[f"{place}/accuracy_{count}_std"] = statistics.stdev(found["accuracy"])
            if all(map(math.isfinite, losses)):
                metrics[f"{place}/loss_{count}_std"] = statistics.stdev(losses)
    return metrics
