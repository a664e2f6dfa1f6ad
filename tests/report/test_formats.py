"""Tables as Markdown, CSV, LaTeX and HTML keep every text a text."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from bitexp.report.columns import FILE, LONG, SHORT, Column, Table, in_two, numeric, one_line, word
from bitexp.report.formats import comma_separated, latex, markdown, web

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


def table(*names: str) -> Table:
    columns = (
        word("name", "name", lambda item: item),
        numeric("length", "length", len, "d"),
        numeric("half", "half", lambda item: len(item) / 2, ".1f", LONG),
        numeric("exact", "exact", lambda item: len(item) / 3, ".1f", FILE),
        Column("empty", "empty", lambda item: "", lambda item: None),
    )
    return Table("Names", columns, names, "What they are.")


def test_markdown() -> None:
    assert markdown(table("ab", "a|b").up_to(SHORT)) == (
        "| name | length |\n|---|---:|\n| ab | 2 |\n| a\\|b | 3 |\n\nWhat they are.\n"
    )


def test_latex() -> None:
    assert latex(table("50 % ± 1_a").up_to(SHORT)) == (
        "\\begin{table}\n\\centering\n\\caption{What they are.}\n\\begin{tabular}{lr}\n\\toprule\n"
        "name & length \\\\\n\\midrule\n50 \\% $\\pm$ 1\\_a & 10 \\\\\n\\bottomrule\n"
        "\\end{tabular}\n\\end{table}\n"
    )


def test_csv_has_all_columns_with_numbers_in_full() -> None:
    assert comma_separated(table("a,b", "")) == (
        'name,length,half,exact,empty\n"a,b",3,1.5,1.0,\n,0,0.0,0.0,\n'
    )


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@sum", "\tx"])
def test_csv_holds_no_formula(text: str) -> None:
    (row,) = csv.DictReader(io.StringIO(comma_separated(table(text))))
    assert row["name"] == f"'{text}"


class Texts(HTMLParser):
    """The tags of a page, and the text of each cell."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attributes: object) -> None:
        self.tags.add(tag)
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


@given(texts)
def test_html_gives_back_the_text(text: str) -> None:
    parser = Texts()
    parser.feed(web(table(text, "end")))
    assert parser.tags <= {"div", "table", "thead", "tbody", "tr", "th", "td", "p"}
    assert parser.cells[0] == one_line(text)


@given(texts)
def test_markdown_gives_back_the_text(text: str) -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown(table(text).up_to(SHORT)))
    cells = [token.children or [] for token in tokens if token.type == "inline"]
    assert all(child.type in ("text", "text_special") for cell in cells[:4] for child in cell), text


def test_a_page_leaves_out_what_is_the_same_in_all_rows() -> None:
    shared = Column("lr", "lr", lambda item: "0.1", lambda item: 0.1, shared=True)
    mean = Column("mean", "mean", lambda item: "0.5", lambda item: 0.5)
    table = Table("t", (mean, shared), (1, 2), "Means.")
    assert [column.title for column in table.condensed().columns] == ["mean"]
    assert table.condensed().caption == "Means. The same in all rows: lr 0.1."
    assert Table("t", (mean, shared), (1,)).condensed().columns == (mean, shared)
    assert table.first(1, "report.md").caption == "Means. The first 1 of 2 rows; all are in report.md."
    assert "<th>runs</th>" not in web(table, lambda run: "")


def test_a_table_too_wide_for_a_page_goes_on_below() -> None:
    """Each part begins with what names its rows, and the caption stands below the last."""
    names = [replace(word(key, key, str), names=True) for key in ("who", "where")]
    others = [Column(f"n{place}", f"n{place}", lambda item: "12345678", lambda item: 1) for place in range(5)]
    broken = Table("t", (*names, *others), ("a", "b"), "Numbers.")
    parts = broken.parts(34)
    assert [[column.title for column in part.columns] for part in parts] == [
        ["who", "where", "n0", "n1"], ["who", "where", "n2", "n3"], ["who", "where", "n4"],
    ]  # fmt: skip
    assert [part.caption for part in parts] == ["", "", "Numbers."]
    assert broken.parts(62) == [broken]
    assert broken.parts(10) == [broken]  # names alone would take all of each line


@pytest.mark.parametrize(
    ("title", "lines"),
    [
        ("seeds", ("seeds", "")), ("p (Holm)", ("p (Holm)", "")), ("bits per weight", ("bits per", "weight")),
        ("energy per image, 45 nm", ("energy per", "image, 45 nm")), ("test/accuracy", ("test/accuracy", "")),
    ],
)  # fmt: skip
def test_headings_have_two_lines_at_most(title: str, lines: tuple[str, str]) -> None:
    assert in_two(title) == lines
