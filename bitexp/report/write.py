"""From runs to the files of a report: index.html, report.md, tables (CSV, LaTeX), plots (SVG, PNG)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from bitexp.common.files import remove_scraps, write_atomic
from bitexp.report import figure, parallel, plots, sweep_plots, tables
from bitexp.report.by_bits import by_bits_table
from bitexp.report.columns import LONG, SHORT, Table
from bitexp.report.compare import Comparison
from bitexp.report.damage import damage_table
from bitexp.report.energy import SOURCE
from bitexp.report.engines import engine_table
from bitexp.report.evidence import evidence_table
from bitexp.report.formats import comma_separated, inline, latex, markdown
from bitexp.report.lineage import lineage_table
from bitexp.report.matrix import matrix
from bitexp.report.mixtures import older_runs
from bitexp.report.page import Section, page
from bitexp.report.runs import Problem, Run
from bitexp.report.scaling import size_table
from bitexp.report.scaling_plot import CAPTION as SCALING
from bitexp.report.scaling_plot import scaling
from bitexp.report.stack_plot import CAPTION as STACKS
from bitexp.report.stack_plot import stacks
from bitexp.report.studies import JournalStudy, grid_importance
from bitexp.report.wording import answer

QUALITY = (
    "Quality against cost: a ring marks rows that no other of the same data and budget beats at the same "
    "cost or less (the Pareto front); bars are the standard deviation over seeds. Of many rows the colours "
    "are the bits of their weights, and hollow points have activations in floats."
)
PARALLEL = (
    "Every setting as a line through its values. Colours are the metric that settings are chosen by, and the "
    "best setting of each row is thicker; lines through the same choice are spread by the metric."
)
IMPORTANCE = (
    "How much of the differences between settings each key explains: PED-ANOVA (arXiv 2304.10255) over all "
    "settings."
)
CURVES = "Learning curves of the settings in the table: mean and standard deviation over seeds."
QUANTIZATION = (
    "What quantization did: the share of zero codes, the share of codes that changed since the last "
    "validation, and the mean scale relative to the first one."
)


def write_report(
    comparisons: Sequence[Comparison],
    runs: Sequence[Run],
    problems: Sequence[Problem],
    studies: Sequence[JournalStudy],
    out: Path,
    refresh: int | None = None,
) -> Path:
    """Writes the report into a folder, and returns its page; `runs` are all, finished or not.

    Raises:
        OSError: the folder cannot be written.
    """
    unfinished = [run for run in runs if not run.finished]
    for folder in (out / "plots", out / "tables"):
        if folder.is_symlink():
            raise OSError(f"{folder} is a link, and what it leads to may be another's")
        folder.mkdir(parents=True, exist_ok=True)
    for folder in (out, out / "plots", out / "tables"):
        remove_scraps(folder)  # the names of files change with what is compared
    names = distinct([comparison.name for comparison in comparisons])
    with figure.style():
        sections = [
            section(comparison, name, unfinished, out)
            for comparison, name in zip(comparisons, names, strict=True)
        ]
        drawn = [
            (study, draw(partial(sweep_plots.importance_bars, study.importance), out, f"study-{number}"))
            for number, study in enumerate(studies)
        ]
        trials = draw(partial(sweep_plots.timeline, runs), out, "timeline")
    overview = matrix(comparisons)
    if overview is not None:
        keep_table(overview, out, stem_of(overview))
    text = page(sections, drawn, trials, unfinished, problems, out, refresh, overview)
    write_atomic(out / "report.md", document(sections, unfinished, problems, overview).encode())
    write_atomic(out / "index.html", text.encode())
    return out / "index.html"


def distinct(names: Sequence[str]) -> list[str]:
    """Names of files, one for each name of an experiment, whatever that is."""
    plain = [re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60] or "experiment" for name in names]
    return [name if plain.count(name) == 1 else f"{name}-{number}" for number, name in enumerate(plain)]


def section(comparison: Comparison, name: str, unfinished: Sequence[Run], out: Path) -> Section:
    """One comparison: writes its tables and plots, and returns them for the page."""
    listed = [
        tables.precision_table(comparison),
        by_bits_table(comparison),
        size_table(comparison),
        tables.bytes_table(comparison),
        engine_table(comparison),
        damage_table(comparison),
        tables.setting_table(comparison),
    ]
    if len(comparison.cells) == len(comparison.rows):
        listed.pop()
    listed += [lineage_table(comparison), older_runs(comparison)]
    kept, tests = [table for table in listed if table is not None], evidence_table(comparison)
    for table in (*kept, *([] if tests is None else [tests])):
        keep_table(table, out, f"{name}-{stem_of(table)}")
    some = f" The first {plots.SHOWN} of {len(comparison.rows)} rows." * (len(comparison.rows) > plots.SHOWN)
    lost = [run for run in unfinished if run.name == comparison.name and run.status == "failed"]
    drawings: dict[str, tuple[Callable[[], Figure | None], str]] = {
        "quality": (partial(plots.quality, comparison), QUALITY),
        "scaling": (partial(scaling, comparison), SCALING),
        "stacks": (partial(stacks, comparison), STACKS),
        "settings": (
            lambda: sweep_plots.heat(comparison, lost) or sweep_plots.sweep_lines(comparison),
            robustness(comparison),
        ),
        "parallel": (partial(parallel.parallel, comparison), PARALLEL),
        "importance": (partial(sweep_plots.importance_bars, grid_importance(comparison)), IMPORTANCE),
        "curves": (partial(plots.curves, comparison), CURVES + some),
        "quantization": (partial(plots.diagnostics, comparison), QUANTIZATION + some),
        "layers": (partial(plots.layers, comparison), "The same by layer, at the end of training." + some),
    }
    svgs = [(draw(drawing, out, f"{name}-{kind}"), caption) for kind, (drawing, caption) in drawings.items()]
    drawn = [(svg, caption) for svg, caption in svgs if svg is not None]
    return Section(comparison, kept, drawn, tests)


def keep_table(table: Table, out: Path, stem: str) -> None:
    """Writes a table as CSV, with all columns, and as LaTeX."""
    write_atomic(out / "tables" / f"{stem}.csv", comma_separated(table).encode())
    write_atomic(out / "tables" / f"{stem}.tex", latex(table.up_to(SHORT)).encode())


def stem_of(table: Table) -> str:
    """A table's title as the name of a file."""
    return table.title.lower().replace(" ", "-")


def robustness(comparison: Comparison) -> str:
    """What the maps of settings show, and the one number for robustness."""
    shares = ", ".join(
        f"{plots.label(comparison, row.cell)} {row.robust:.0%} of {row.settings}"
        for row in comparison.rows
        if row.settings > 1
    )
    lost = any(row.diverged for row in comparison.rows)
    others = "; settings that diverged are not" * lost
    return (
        "All settings on one scale. Robustness: the share of settings within "
        f"{comparison.tolerance:.2g} of the best one's value, relative to it{others}: {shares}."
    )


def draw(make: Callable[[], Figure | None], out: Path, name: str) -> str | None:
    """Keeps a plot, and returns it for wide and for narrow pages; None where there is nothing to show."""
    drawing = make()
    if drawing is None:
        return None
    wide = figure.save(drawing, out / "plots", name)
    if drawing.get_figwidth() <= figure.NARROW:
        return wide
    with figure.narrow():
        stacked = make()
    assert stacked is not None
    narrow = figure.larger(figure.svg(stacked, f"{name}-narrow"))
    return f"<div class=wide>{wide}</div><div class=narrow>{narrow}</div>"


def document(
    sections: Sequence[Section],
    unfinished: Sequence[Run],
    problems: Sequence[Problem],
    overview: Table | None = None,
) -> str:
    """The tables as one Markdown file."""
    lines = ["# Which precision wins, and at what cost?", ""]
    if overview is not None:
        lines += [f"## {overview.title}", "", markdown(overview.up_to(LONG)), ""]
    for part in sections:
        lines += [f"## {inline(part.comparison.name)}", "", inline(answer(part.comparison)), ""]
        for table in (*part.tables, *([] if part.tests is None else [part.tests])):
            lines += [f"### {table.title}", "", markdown(table.up_to(LONG)), ""]
    if sections:
        lines += [SOURCE, ""]
    if unfinished or problems:
        lines += ["## Not finished or not read", ""]
        lines += [f"- {inline(str(run.path))}: {inline(run.status)}" for run in unfinished]
        lines += [f"- {inline(str(problem.path))}: {inline(problem.reason)}" for problem in problems]
    return "\n".join(lines) + "\n"
