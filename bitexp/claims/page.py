"""The page of a set of claims: a verdict for each, its table, its figure, and the command of each number."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from bitexp.claims.analyses import Answer, Finding
from bitexp.claims.figures import CAPTION, differences
from bitexp.claims.plan import Part, Plan
from bitexp.common.files import write_atomic
from bitexp.common.format import counted
from bitexp.report import figure
from bitexp.report.columns import Column, Table, numeric, word
from bitexp.report.formats import escape, markdown, web
from bitexp.report.page import CSS, drawn
from bitexp.report.wording import p_text


def write_page(plan: Plan, folder: Path) -> Path:
    """Writes index.html, claims.md and the plots into a folder; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    with figure.style():
        answers = [(part, part.answer) for part in plan.parts]
        body = [
            *introduction(plan, answers),
            *(line for part, a in answers for line in section(plan, part, a, folder)),
        ]
    body.append(about(plan))
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(plan.claims.title)}</title><style>{figure.css()}{CSS}</style></head><body>"
    )
    write_atomic(folder / "index.html", (head + "\n".join(body) + "</body></html>\n").encode())
    write_atomic(folder / "claims.md", document(plan, answers).encode())
    return folder / "index.html"


def introduction(plan: Plan, answers: Sequence[tuple[Part, Answer]]) -> list[str]:
    """What is asked, and the answers in a table."""
    return [
        f"<h1>{escape(plan.claims.title)}</h1>",
        f"<p class=lead>{escape(plan.claims.about)}</p>",
        f"<p>{escape(how_far(plan))}</p>",
        web(overview(answers)),
    ]


def how_far(plan: Plan) -> str:
    """How many of the runs are there."""
    known, total = sum(part.known for part in plan.parts), sum(part.total for part in plan.parts)
    return (
        f"Scale {plan.scale}: {known:,} of {total:,} runs are finished. What is not finished has no verdict."
    )


def overview(answers: Sequence[tuple[Part, Answer]]) -> Table:
    """A row for each claim."""
    columns = (
        word("question", "question", lambda item: item[0].key),
        word("claim", "claim", lambda item: item[0].question.claim),
        word("verdict", "verdict", lambda item: item[1].standing),
        numeric("seeds", "seeds", lambda item: item[0].sweep.seeds, "d"),
        word("runs", "runs", lambda item: f"{item[0].known:,} of {item[0].total:,}"),
    )
    return Table("Claims", columns, tuple(answers))


def in_numbers(answer: Answer) -> str:
    """The differences that a claim is about, with their intervals."""
    return "; ".join(
        f"{row.name} {signed(row.verdict.mean)}{interval(row)}"
        for row in answer.findings
        if row.claimed and row.verdict is not None
    )


def section(plan: Plan, part: Part, answer: Answer, folder: Path) -> list[str]:
    """One question: the claim, the verdict, the table, figures and commands."""
    question = part.question
    body = [
        f'<h2 id="{escape(part.key)}">{escape(question.question)}</h2>',
        f"<p>“{escape(question.claim)}” <span class=note>{escape(question.source)}</span></p>",
        f"<p><strong>{escape(sentence(part, answer))}</strong></p>",
        web(table(part, answer).up_to()),
    ]
    drawings = list(answer.figures)
    if (drawing := differences(answer)) is not None:
        drawings.insert(0, (drawing, CAPTION))
    for number, (drawing, caption) in enumerate(drawings):
        body.append(drawn(figure.save(drawing, made(folder / "plots"), f"{part.key}-{number}"), caption))
    body += [f"<p class=note>{escape(remark)}</p>" for remark in remarks(part, answer)]
    if part.runs:
        lines = "\n".join(commands(plan, part))
        body.append(
            f"<details><summary>commands ({len(part.words)})</summary><pre>{escape(lines)}</pre></details>"
        )
    return body


def remarks(part: Part, answer: Answer) -> Iterator[str]:
    """What else is to be said about an answer."""
    yield from answer.remarks
    compared = sum(map(len, part.runs.values()))
    if part.margin is not None and compared:
        others = "" if part.margins_before == compared else "; others kept another or none"
        yield (
            f"{part.margins_before:,} of {counted(compared, 'run')} that are compared kept the margin "
            f"{part.margin:g} when they began{others}."
        )


def made(folder: Path) -> Path:
    """A folder, which is there afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def sentence(part: Part, answer: Answer) -> str:
    """The verdict of a claim in words."""
    if answer.standing == "not yet run":
        diverged = f", {part.diverged:,} diverged" if part.diverged else ""
        begin = "Not yet run" if part.open else "No verdict"
        return f"{begin}: {part.known:,} of {counted(part.total, 'run')} are finished{diverged}."
    words = "; ".join(
        f"{row.name}{',' if ',' in row.name else ''} is {row.word}"
        for row in answer.findings
        if row.claimed and not row.is_control
    )
    margin = next(row.verdict.margin for row in answer.findings if row.verdict is not None)
    return (
        f"The claim {VERBS.get(answer.standing, answer.standing)} here: {words}. "
        f"({answer.measure}, margin {margin:g}, {counted(part.sweep.seeds, 'seed')}.)"
    )


VERBS = {"undecided": "is undecided"}


def table(part: Part, answer: Answer) -> Table:
    """The rows of an answer."""
    extra = list(dict.fromkeys(name for row in answer.findings for name in row.extra))
    columns: tuple[Column, ...] = (
        word(", ".join(part.sweep.axes), "choice", lambda row: row.name),
        numeric("seeds", "seeds", lambda row: len(row.ours), "d"),
        word(answer.measure, "value", value_text),
        word("difference", "difference", lambda row: "" if row.verdict is None else signed(row.verdict.mean)),
        word("95 % interval", "interval", lambda row: "" if row.verdict is None else interval(row).strip()),
        word("p, different", "p_different", lambda row: p_of(row, "p_different")),
        word("p, equivalent", "p_equivalent", lambda row: p_of(row, "p_equivalent")),
        word("verdict", "verdict", lambda row: row.word),
        word("seeds needed", "seeds_needed", seeds_needed),
        word("tuned", "tuned", lambda row: tuned(part, row)),
        *(word(name, name, partial(further, name)) for name in extra),
    )
    control = next((row.name for row in answer.findings if row.is_control), None)
    against = "" if control is None else "Differences are to the control on common seeds. "
    caption = (
        f"{against}p values are of the paired t test and of TOST, each by itself; verdicts are corrected by "
        "Holm for the rows of the table."
    )
    return Table(part.question.question, columns, answer.findings, caption)


def further(name: str, row: Finding) -> str:
    """What a row has beside what all have."""
    return row.extra.get(name, "")


def value_text(row: Finding) -> str:
    """Mean and standard deviation over seeds."""
    if row.mean is None:
        return ""
    return f"{row.mean:.4f}" if row.std is None else f"{row.mean:.4f} ± {row.std:.4f}"


def signed(number: float) -> str:
    """A difference."""
    return f"{number:+.4f}"


def interval(row: Finding) -> str:
    """Of the difference; nothing where there is no spread."""
    one = row.verdict
    if one is None or one.low is None or one.high is None:
        return ""
    return f" [{signed(one.low)}, {signed(one.high)}]"


def p_of(row: Finding, name: str) -> str:
    """A p value of a verdict."""
    value = None if row.verdict is None else getattr(row.verdict, name)
    return "" if value is None else p_text(value)


def seeds_needed(row: Finding) -> str:
    """Where a verdict is undecided, how many seeds would decide it at the spread seen."""
    if row.verdict is None or row.verdict.word != "undecided":
        return ""
    needed = row.verdict.seeds_needed
    return "" if needed is None else f"{needed:,}"


def tuned(part: Part, row: Finding) -> str:
    """The settings that tuning found for a row; a better one may lie beyond an end of its values."""
    tune = part.sweep.tune
    if tune is None:
        return ""
    ends = (min(tune.values), max(tune.values))
    values = {
        float(text.partition("=")[2])
        for place in row.places
        for text in part.words.get(place, ())[-1:]
        if text.partition("=")[0] == tune.key
    }
    return ", ".join(f"{value} (an end)" if value in ends else str(value) for value in sorted(values))


def commands(plan: Plan, part: Part) -> list[str]:
    """What makes the runs behind each number."""
    seeds = ",".join(map(str, range(part.sweep.seeds)))
    return [
        shlex.join(["python", "-m", "bitexp", "-m", *words, f"seed={seeds}"])
        for words in map(plan.resolved, part.words.values())
    ]


def about(plan: Plan) -> str:
    """Where the numbers come from."""
    used = list(plan.used())
    machines = sorted({run.facts["machine"] for run in used if run.facts["machine"]})
    dates = sorted({run.facts["started"][:10] for run in used if run.facts["started"]})
    other = plan.of_other_source()
    lines = [
        f"{counted(len(used), 'run')}, a line each in runs.csv.",
        f"Made on {'; '.join(machines)}." if machines else "",
        f"Begun {dates[0]} to {dates[-1]}." if dates else "",
        f"{other:,} of them by a different version of bitexp." if other else "",
    ]
    return f"<h2>Where the numbers come from</h2><p>{escape(' '.join(filter(None, lines)))}</p>"


def document(plan: Plan, answers: Sequence[tuple[Part, Answer]]) -> str:
    """The same as Markdown."""
    lines = [f"# {plan.claims.title}", "", how_far(plan), "", markdown(overview(answers)), ""]
    for part, answer in answers:
        lines += [f"## {part.question.question}", "", f"> {part.question.claim}", ""]
        lines += [sentence(part, answer), "", markdown(table(part, answer).up_to()), ""]
    return "\n".join(lines)
