"""The page: one HTML file without network, for light and dark, screen and paper.

Its one script sorts and filters rows; the page's own policy lets no other run, and all is there without it.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from bitexp.common.format import counted
from bitexp.report import figure
from bitexp.report.columns import LONG, SHORT, Table, cell_text, word
from bitexp.report.compare import Comparison
from bitexp.report.energy import SOURCE
from bitexp.report.formats import comma_separated, escape, latex, markdown, web
from bitexp.report.runs import Problem, Run
from bitexp.report.studies import JournalStudy
from bitexp.report.wording import answer

CSS = """
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem 1.2rem 4rem;max-width:100rem;
background:var(--cfdfdfc);color:var(--c1f2329);
font:15px/1.5 system-ui,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
h1{font-size:1.5rem;margin:.2rem 0}
h2{font-size:1.25rem;margin:2.6rem 0 .6rem;border-bottom:1px solid var(--cd6dae0)}
h3{font-size:1rem;margin:1.6rem 0 .4rem}
h1,h2,h3,p,li,summary{overflow-wrap:anywhere}
.lead,.note,figcaption,summary{color:var(--c5c6570)}
.note,figcaption{font-size:.86rem;max-width:62rem}
.note{margin:.3rem 0 1rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.78rem;font-variant-numeric:tabular-nums;margin:.3rem 0}
th,td{padding:.28rem .4rem;border-bottom:1px solid var(--cd6dae0)}
th{font-weight:600;text-align:left;vertical-align:bottom;white-space:nowrap;
border-bottom-color:var(--c5c6570);color:var(--c5c6570)}
td{white-space:nowrap}
td.wrap{white-space:normal;min-width:18rem;overflow-wrap:anywhere}
th.n,td.n{text-align:right}
th button{all:unset;cursor:pointer}
th button:focus-visible{outline:2px solid}
th[aria-sort=ascending] button::after{content:" \\2191"}
th[aria-sort=descending] button::after{content:" \\2193"}
.filter{font-size:.86rem;color:var(--c5c6570)}
.filter input{font:inherit;padding:.15rem .4rem}
tr:hover td{background:color-mix(in srgb,var(--cd6dae0) 35%,transparent)}
a{color:var(--c0b69b7)}
code,pre{font:.8rem/1.45 ui-monospace,"DejaVu Sans Mono",Menlo,monospace}
pre{overflow:auto;padding:.6rem;border:1px solid var(--cd6dae0);max-height:22rem}
figure{margin:.8rem 0 1.4rem;overflow-x:auto}
figure svg{display:block;max-width:max(100%,46rem);height:auto}
.narrow{display:none}
@media screen and (max-width:46rem){.wide{display:none}.narrow{display:block}.narrow svg{max-width:100%}}
nav a{margin-right:1rem}
summary{cursor:pointer}
details{margin:.5rem 0}
@media print{
@page{size:landscape;margin:12mm}
body{max-width:none;padding:0;font-size:11px}
.scroll,figure,pre{overflow:visible;max-height:none}
table{font-size:7.4px}th,td{padding:.15rem .25rem}td,td.wrap{white-space:normal;min-width:0}
td.n{white-space:nowrap}
.note,figcaption{font-size:9px}.filter{display:none}
figure,tr{break-inside:avoid}h2,h3{break-after:avoid}a{color:inherit}
figure svg{min-width:0;width:auto;max-height:7cm}figure{margin:.2rem 0 .6rem}
}
"""

SCRIPT = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
ONLY = f"sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}"
"""What the page's policy knows the script by."""
MOST = 200
"""Rows of a table on the page, which a browser is to show at once."""
LONGEST = 500
"""Characters of a reason; a library may give a page of them."""


@dataclass
class Section:
    """One comparison on the page: its tables and its plots with what they show."""

    comparison: Comparison
    tables: list[Table]
    plots: list[tuple[str, str]]
    """SVG and caption of each."""
    tests: Table | None = None
    """Of the differences."""


def page(
    sections: Sequence[Section],
    studies: Sequence[tuple[JournalStudy, str | None]],
    trials: str | None,
    unfinished: Sequence[Run],
    problems: Sequence[Problem],
    out: Path,
    refresh: int | None = None,
    overview: Table | None = None,
) -> str:
    """The whole page.

    Args:
        studies: with the SVG of their importance each; trials: SVG of the timeline.
        out: the folder of the page, from which links lead to the runs.
        refresh: seconds after which a browser reads the page again.
        overview: of all experiments, before them.
    """
    finished = sum(len(section.comparison.runs) for section in sections)
    link = linker(out)
    body = [
        "<h1>Which precision wins, and at what cost?</h1>",
        f"<p class=lead>{counted(finished, 'finished run')} in {counted(len(sections), 'experiment')}"
        f"{f', {len(unfinished)} not finished' if unfinished else ''}. Every number comes from the files "
        "of the runs that its row links to.</p>",
    ]
    names = [f"{s.comparison.name} ({s.comparison.metric})" for s in sections]
    if len(sections) > 1:
        anchors = (f'<a href="#e{i}">{escape(name)}</a>' for i, name in enumerate(names))
        body.append(f"<nav>{''.join(anchors)}</nav>")
    if overview is not None:
        body += [f"<h2>{overview.title}</h2>", web(overview.up_to(LONG).first(MOST)), export(overview)]
    for number, (section, name) in enumerate(zip(sections, names, strict=True)):
        body += [f'<h2 id="e{number}">{escape(name)}</h2>', *section_body(section, link)]
    for study, drawing in studies:
        body += [f"<h2>Study {escape(study.name)}</h2>", *study_body(study, drawing)]
    if trials is not None:
        caption = "Each bar is a run: its last attempt, from start to end."
        body += ["<h2>Timeline</h2>", drawn(trials, caption)]
    body += rest(unfinished, problems, link)
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f"style-src 'unsafe-inline'; img-src data:; script-src '{ONLY}'\">"
        f'{f"""<meta http-equiv="refresh" content="{refresh}">""" if refresh else ""}'
        f"<title>bitexp: which precision wins?</title><style>{figure.css()}{CSS}</style></head><body>"
    )
    return head + "\n".join(body) + f"<script>{SCRIPT}</script></body></html>\n"


def linker(out: Path) -> Callable[[Run], str]:
    """Where a run's folder is, as seen from the page; a name with a colon stays a path."""

    def link(run: Run) -> str:
        path = os.path.relpath(run.path.absolute(), out.absolute()).replace(os.sep, "/")
        return quote(os.fsencode(path)) + "/"  # of whatever bytes

    return link


def section_body(section: Section, link: Callable[[Run], str]) -> list[str]:
    """One comparison: the answer, the plots, the other tables, how to make it again."""
    first, *others = section.tables
    body = [
        f"<p><strong>{escape(answer(section.comparison))}</strong></p>",
        web(first.up_to(LONG).condensed().first(MOST), link),
        export(first),
    ]
    if section.tests is not None:
        body += [f"<h3>{section.tests.title}</h3>", web(section.tests.up_to(LONG).first(MOST), link)]
        body.append(export(section.tests))
    if any(row.cell.energy() is not None for row in section.comparison.rows):
        body.append(f"<p class=note>{escape(SOURCE)}</p>")
    body += [drawn(drawing, caption) for drawing, caption in section.plots]
    for table in others:
        inner = web(table.up_to(LONG).first(MOST), link) + export(table)
        if len(table.items) > 12:
            body.append(
                f"<details><summary>{escape(table.title)} ({len(table.items)})</summary>{inner}</details>"
            )
        else:
            body += [f"<h3>{escape(table.title)}</h3>", inner]
    body += ["<h3>How to reproduce each run</h3>", reproduce(section.comparison.runs, link)]
    return body


def drawn(drawing: str, caption: str) -> str:
    """A plot with what it shows."""
    return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def export(table: Table) -> str:
    """The short table as text to copy; files with all columns lie beside the page, of long tables alone."""
    if len(table.items) > MOST:
        return ""
    short = table.up_to(SHORT)
    forms = {"Markdown": markdown(short), "LaTeX": latex(short), "CSV": comma_separated(table)}
    blocks = "".join(f"<h3>{name}</h3><pre>{escape(text)}</pre>" for name, text in forms.items())
    return f"<details><summary>as Markdown, LaTeX, CSV</summary>{blocks}</details>"


def reproduce(runs: Sequence[Run], link: Callable[[Run], str]) -> str:
    """Command, commit and environment of every run."""
    rows = []
    for run in runs[:MOST]:
        git = run.attempt.get("git")
        commit = "" if git is None else str(git.get("commit", ""))[:10] + "+" * bool(git.get("dirty"))
        torch = run.attempt.get("versions", {}).get("torch")
        place = ", ".join(map(str, run.attempt.get("gpus") or [run.attempt.get("processor", "")]))
        threads = run.attempt.get("threads")
        on = counted(threads, "thread") if isinstance(threads, int) else "? threads"
        environment = (
            f"torch {cell_text(torch)}, Python {cell_text(run.attempt.get('python'))}, {place}, {on}"
        )
        rows.append(
            f'<tr><td><a href="{escape(link(run))}">{escape(run.id)}</a></td>'
            f"<td class=wrap><code>{escape(run.command)}</code></td>"
            f"<td>{escape(commit)}</td><td>{escape(cell_text(run.result.get('source')))}</td>"
            f"<td class=wrap>{escape(environment)}</td></tr>"
        )
    heads = "".join(f"<th>{title}</th>" for title in ("run", "command", "commit", "source", "environment"))
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    more = f"The first {MOST} of {len(runs):,} runs. " if len(runs) > MOST else ""
    note = (
        f"<p class=note>{more}A + marks a checkout with changes; source is the hash of bitexp's own Python "
        "files. All versions are in provenance.json of each run.</p>"
    )
    inner = f'<div class=rows><div class=scroll tabindex="0">{table}</div></div>{note}'
    title = f"commands, commits and environments ({len(runs)})"
    return f"<details><summary>{title}</summary>{inner}</details>"


def study_body(study: JournalStudy, drawing: str | None) -> list[str]:
    """A study in words, with the importance of its parameters."""
    states = ", ".join(f"{count} {state}" for state, count in sorted(study.states.items())) or "no"
    body = [f"<p>{escape(states)} trials; journal: {escape(study.path)}</p>"]
    if study.value is not None:
        setting = ", ".join(f"{key}={value}" for key, value in study.best.items())
        body.append(f"<p>Best: {study.value:.4f} with <code>{escape(setting)}</code></p>")
    if drawing is not None:
        body.append(drawn(drawing, "Importance of the study's parameters by PED-ANOVA (arXiv 2304.10255)."))
    return body


def rest(unfinished: Sequence[Run], problems: Sequence[Problem], link: Callable[[Run], str]) -> list[str]:
    """What is in none of the tables, and why."""
    body = []
    if unfinished:
        columns = (
            word("experiment", "experiment", lambda run: run.name),
            word("precision", "precision", lambda run: run.precision),
            word("seed", "seed", lambda run: run.seed),
            word("status", "status", lambda run: run.status),
            word("reason", "reason", reason),
        )
        table = Table("Not finished", columns, tuple(unfinished), links=lambda run: (run,))
        body += ["<h2>Not finished</h2>", web(table.first(MOST, "report.md"), link)]
    if problems:
        items = [f"<li><code>{escape(p.path)}</code>: {escape(p.reason)}</li>" for p in problems[:MOST]]
        if len(problems) > MOST:
            items.append(f"<li>and {len(problems) - MOST:,} more, which are in report.md</li>")
        body += ["<h2>Not read</h2>", f"<ul>{''.join(items)}</ul>"]
    return body


def reason(run: Run) -> str:
    """Why a run did not finish, or how far it is."""
    if run.result:
        return cell_text(run.result.get("reason"))[:LONGEST]
    loss = run.curves.get("train/loss")
    return f"no result yet; at step {loss[-1][0]:,}" if loss else "no result yet"
