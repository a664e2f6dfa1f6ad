"""A set of claims as a file, conf/claims/NAME.yaml: questions, the runs that answer them, what counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError

from bitexp.claims.analyses import ANALYSES, Analysis
from bitexp.common.errors import UserError
from bitexp.common.files import LARGEST_YAML, read_text
from bitexp.common.spelling import nearest
from bitexp.config.arguments import check_arguments
from bitexp.config.explain import explain
from bitexp.config.paths import conf_folders
from bitexp.config.schema import Count, Label, Named, NotNegativeCount, Positive, Section

GROUP = "claims"
Scale = Literal["small", "full"]
SCALES: tuple[Scale, ...] = ("small", "full")
DERIVED = ("lr_decay_sum",)
"""Axes that stand for another key: the weight decay with which learning rate times decay sums to that."""


def labelled(value: Any) -> Any:
    """A list of values is short for words that are a value each, under that value's name."""
    return {str(entry): entry for entry in value} if isinstance(value, list) else value


Axis = Annotated[dict[str, Any], BeforeValidator(labelled), Field(min_length=1)]
"""What is varied, by the name of each choice: a value of the axis, or the words that are typed for it."""


class Tune(Section):
    """The search for a setting of its own for each choice, by validation, all with the same budget."""

    key: str
    values: list[float] = Field(min_length=2)
    seed: NotNegativeCount
    per: list[str] | None = None
    """The axes whose choices are tuned each; the others stand at one choice. None: all."""
    at: dict[str, str] = Field(default_factory=dict)
    """That choice, for an axis that is not tuned each; the first where it is not said."""


class Sweep(Section):
    """The runs that answer a question: all combinations of the axes, over common seeds."""

    words: list[str]
    axes: dict[str, Axis] = Field(min_length=1)
    tune: Tune | None = None
    seeds: Count
    seconds: Positive
    """About how long a run takes, where none is known yet."""


class Question(Section):
    """A question, the sentence that is asked about, and how runs answer it."""

    question: str = Field(min_length=1)
    claim: str = Field(min_length=1)
    source: str = Field(min_length=1)
    analysis: Named
    sweep: dict[Scale, Sweep] = Field(min_length=1)


class Claims(Section):
    """The whole file."""

    title: str
    about: str
    questions: dict[Label, Question] = Field(min_length=1)


def claims_files(folders: Iterable[Path]) -> dict[str, Path]:
    """The files of claims by their names; those of earlier folders come first."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted((folder / GROUP).glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def read_claims(name: str, config_dir: Path | None = None) -> Claims:
    """The claims of that name, all of it checked but for what only composing tells.

    Args:
        config_dir: where configs of one's own are, before those of bitexp and of packages that extend it.

    Raises:
        UserError: there are none, or the file cannot answer its questions; all faults at once.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise UserError(f"--config-dir={config_dir} is no folder")
    files = claims_files([*([] if config_dir is None else [config_dir]), *conf_folders()])
    if name not in files:
        raise UserError(f"unknown claims '{name}'.{nearest(name, files)} Known: {', '.join(files)}")
    try:
        content: Any = yaml.safe_load(read_text(files[name], LARGEST_YAML))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{files[name]} cannot be read: {error}") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{files[name]} has no title, about and questions")
    try:
        claims = Claims.model_validate(dict(content))
    except ValidationError as error:
        raise UserError(f"{files[name]}:\n{explain(error, '', content, Claims)}") from None
    problems = [line for key, question in claims.questions.items() for line in flaws(key, question)]
    if problems:
        raise UserError("\n".join([f"{files[name]} cannot answer its questions:", *problems]))
    return claims


def flaws(key: str, question: Question) -> list[str]:
    """Why the runs of a question could not answer it."""
    try:
        target = ANALYSES.get(question.analysis.name)
        arguments = check_arguments(f"{key}.analysis", target, question.analysis.arguments)
    except UserError as problem:
        return str(problem).splitlines()
    analysis, found = target(**arguments), list[str]()
    for scale, sweep in question.sweep.items():
        where = f"{key}, {scale}"
        if sweep.seeds < 2:
            found.append(
                f"{where}: one seed has no spread, so no verdict can be had; seeds should be 2 or more"
            )
        if any(word.lstrip("+").partition("=")[0] == "seed" for word in sweep.words) or "seed" in sweep.axes:
            found.append(f"{where}: seeds are said by `seeds`, so that all choices have them in common")
        tune = sweep.tune
        if tune is not None and tune.seed < sweep.seeds:
            found.append(
                f"{where}: seed {tune.seed} is tuned on and counted as well; tune.seed should be "
                f"{sweep.seeds} or more"
            )
        if set(DERIVED) & set(sweep.axes) and "optimizer.lr" not in sweep.axes:
            found.append(f"{where}: lr_decay_sum needs the axis optimizer.lr beside it")
        found += [f"{where}: {flaw}" for flaw in flaws_of_tuning(sweep)]
        found += [f"{where}: {flaw}" for flaw in analysis.flaws(sweep.axes)]
    return found


def flaws_of_tuning(sweep: Sweep) -> Iterator[str]:
    """What tuning names that is not in the sweep."""
    tune = sweep.tune
    if tune is None:
        return
    for axis in tune.per or ():
        if axis not in sweep.axes:
            known = ", ".join(sweep.axes)
            yield f"tune.per names '{axis}', which is no axis.{nearest(axis, sweep.axes)} Known: {known}"
    for axis, label in tune.at.items():
        if axis not in sweep.axes or label not in sweep.axes[axis]:
            yield f"tune.at={{{axis}: {label}}} is no choice of an axis"
        elif axis in (sweep.axes if tune.per is None else tune.per):
            yield f"tune.at names '{axis}', all choices of which are tuned each"


def analysis_of(question: Question) -> Analysis:
    """How a question is answered."""
    analysis: Analysis = ANALYSES.get(question.analysis.name)(**question.analysis.arguments)
    return analysis
