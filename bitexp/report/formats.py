"""Tables as Markdown, CSV, LaTeX and HTML. Whatever a config or a folder is called, it stays text."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from bitexp.report.columns import Column, Table, in_two, one_line
from bitexp.report.runs import Run, clean
from bitexp.track.folder import is_number

LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%",
    "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "±": r"$\pm$", "µ": r"\textmu{}",
    "<": r"$<$", ">": r"$>$",
}  # fmt: skip


def inline(text: str) -> str:
    """Text in Markdown that stays on its line and means nothing else."""
    return re.sub(r"([\\`*_\[\]|<>])", r"\\\1", one_line(text))


def markdown(table: Table) -> str:
    """A GitHub table with its caption."""
    lines = [
        "| " + " | ".join(inline(column.title) for column in table.columns) + " |",
        "|" + "|".join("---:" if column.number else "---" for column in table.columns) + "|",
        *("| " + " | ".join(row) + " |" for row in table.emphasized(inline, "**%s**")),
    ]
    return "\n".join(lines) + "\n" + (f"\n{inline(table.caption)}\n" if table.caption else "")


def comma_separated(table: Table) -> str:
    """CSV with values in full; text that a spreadsheet would take for a formula is quoted as text."""
    out = io.StringIO()
    keys = [column.key for column in table.columns]
    writer = csv.DictWriter(out, keys, lineterminator="\n")
    writer.writeheader()
    for row in table.values():
        writer.writerow({key: harmless(value) for key, value in row.items()})
    return clean(out.getvalue())


def harmless(value: object) -> object:
    """A value as it is, unless it is text that begins like a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value


def latex(table: Table) -> str:
    """A booktabs table."""

    def cell(text: str) -> str:
        return "".join(LATEX.get(character, character) for character in one_line(text))

    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{cell(table.caption or table.title)}}}",
        rf"\begin{{tabular}}{{{''.join('r' if column.number else 'l' for column in table.columns)}}}",
        r"\toprule",
        " & ".join(cell(column.title) for column in table.columns) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in table.emphasized(cell, r"\textbf{%s}")),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escape(text: object) -> str:
    """Text for HTML, also inside of attributes."""
    return html.escape(clean(str(text)), quote=True)


WIDE = 180
"""Letters of a table that a page of 1,400 pixels shows side by side."""


def web(table: Table, link: Callable[[Run], str] | None = None) -> str:
    """An HTML table, or several one below the other where it would be too wide for a page.

    With `link` the second column of the first one leads to the folders of the runs behind each row.
    """
    first, *others = table.parts(WIDE)
    parts = "".join([web_part(first, link), *map(web_part, others)])
    return f"<div class=rows>{parts}</div>"


def web_part(table: Table, link: Callable[[Run], str] | None = None) -> str:
    """One HTML table."""
    if not any(table.links(item) for item in table.items[:1]):
        link = None
    heads = "".join(
        f'<th scope="col"{number(column.number)}>{heading(column.title)}</th>' for column in table.columns
    )
    heads = heads.replace("</th>", "</th><th>runs</th>", 1) if link else heads
    lines = []
    for item, row in zip(table.items, table.emphasized(escape, "<strong>%s</strong>"), strict=True):
        cells = "".join(
            f"<td{number(column.number)}{sorted_by(column, item)}>{text}</td>"
            for column, text in zip(table.columns, row, strict=True)
        )
        if link:
            cells = cells.replace("</td>", f"</td><td>{links(table.links(item), link)}</td>", 1)
        lines.append(f"<tr>{cells}</tr>")
    note = f"<p class=note>{escape(table.caption)}</p>" if table.caption else ""
    body = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class=scroll tabindex="0"><table>{body}</table></div>{note}'


def heading(title: str) -> str:
    """A heading in at most two lines."""
    return " <br>".join(escape(line) for line in in_two(one_line(title)) if line)


def number(is_number: bool) -> str:
    """The class of a cell with a number."""
    return " class=n" if is_number else ""


def sorted_by(column: Column, item: Any) -> str:
    """The number that a cell is sorted by, where it has one."""
    value = column.value(item)
    return f" data-v={value:.6g}" if is_number(value) else ""


def links(runs: Sequence[Run], link: Callable[[Run], str]) -> str:
    """Links to the folders of runs, named by their seeds."""
    return " ".join(
        f'<a href="{escape(link(run))}" title="{escape(run.path)}">{escape(run.seed)}</a>' for run in runs
    )
