"""How a figure looks and how it is kept: one drawing, as PNG and as SVG that follows light and dark."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bitexp.common.files import write_atomic

INK, MUTED, GRID, PAPER = "#1f2329", "#5c6570", "#d6dae0", "#fdfdfc"
PRECISIONS = (
    "#33373d", "#8a9099", "#0b69b7", "#c2410c", "#5b7f17", "#9333a8", "#0f857a", "#b4860b", "#c02660",
)  # fmt: skip
"""Colours of lines and points, on light paper, in the order of precisions: grey for the baselines."""
DARK = {
    INK: "#e8eaed", MUTED: "#a2abb6", GRID: "#3a4049", PAPER: "#16181c",
    "#33373d": "#e8eaed", "#8a9099": "#9aa2ad", "#0b69b7": "#62b0f5", "#c2410c": "#fb8a4b",
    "#5b7f17": "#a5cc5a", "#9333a8": "#d58be6", "#0f857a": "#4fd1c0", "#b4860b": "#e7bf4a",
    "#c02660": "#f27bab",
}  # fmt: skip
"""What each colour becomes on dark paper."""
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9, "axes.titlesize": 9.5, "axes.labelsize": 9,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "axes.titlecolor": INK,
    "xtick.color": MUTED, "ytick.color": MUTED, "grid.color": GRID, "grid.linewidth": 0.6,
    "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "legend.frameon": False, "lines.linewidth": 1.6, "svg.fonttype": "none", "text.parse_math": False,
}  # fmt: skip


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each precision: the baselines in grey, the others in turn."""
    from bitexp.report.compare import BASELINE

    others = [name for name in names if name not in (BASELINE, "full_norm")]
    in_turn = {name: PRECISIONS[2 + i % (len(PRECISIONS) - 2)] for i, name in enumerate(others)}
    return {BASELINE: PRECISIONS[0], "full_norm": PRECISIONS[1], **in_turn}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """In it figures are drawn in the house style, a `$` in a name is no formula, and any letter will do."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a browser has another font
        warnings.filterwarnings("ignore", "constrained_layout not applied")  # names of any length
        yield


NARROW = 4.2
"""Inches that a phone shows with letters that can be read."""
_narrow = ContextVar("narrow", default=False)


@contextlib.contextmanager
def narrow() -> Iterator[None]:
    """In it figures are as wide as a phone, and their panels stand one above the other."""
    token = _narrow.set(True)
    try:
        yield
    finally:
        _narrow.reset(token)


def new(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure in inches and its axes, without pyplot's global state."""
    if _narrow.get():
        width, height, rows, columns = min(width, NARROW), height * columns, rows * columns, 1
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def logarithmic(axis: Any, write: Callable[[float], str] = "{:g}".format, small: bool = False) -> None:
    """A logarithmic axis whose labels are plain numbers, as many as a range of any size needs."""
    low, high = axis.get_view_interval()
    decades = (2 if small else 1) * math.log10(high / low) if 0 < low < high else 1
    steps = (1.0, 2.0, 5.0) if decades < 1.6 else (1.0, 3.0) if decades < 3 else (1.0,)
    axis.set_major_locator(LogLocator(subs=steps, numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


def doublings(panel: Any, values: Sequence[float]) -> None:
    """A logarithmic axis below a panel that names these values and no others."""
    panel.set_xscale("log", base=2)
    panel.set_xticks(values, [f"{value:g}" for value in values])
    panel.minorticks_off()


def svg(figure: Figure, name: str) -> str:
    """The figure as SVG, its colours as variables with values for light and for dark paper."""
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]", " ", text)  # a name may hold what XML may not
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(
        r'\bid="(figure|axes|patch|text|line2d|legend|xtick|ytick|matplotlib[.]axis|[A-Za-z]+Collection)_\d+"',
        "",
        text,
    )
    text = text.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    for colour in DARK:
        text = re.sub(colour, f"var(--c{colour[1:]})", text, flags=re.IGNORECASE)
    return smaller(text)


def smaller(drawing: str) -> str:
    """SVG of half the size: coordinates in hundredths of a point, and a class for each style.

    Classes are named by what they say, so that those of several drawings on one page agree.
    """
    styles: dict[str, str] = {}

    def classed(match: re.Match[str]) -> str:
        name = styles.setdefault(match[1], f"s{hashlib.sha256(match[1].encode()).hexdigest()[:6]}")
        return f'class="{name}"'

    text = re.sub(r'\bstyle="([^"]*)"', classed, re.sub(r">\s+<", "><", drawing))
    text = re.sub(r'\b(d|x|y|transform|points)="([^"]*)"', lambda m: f'{m[1]}="{rounded(m[2])}"', text)
    rules = "".join(f".{name}{{{style}}}" for style, name in styles.items())
    return text.replace("</style>", f"{rules}</style>", 1).replace("<g >", "<g>")


def rounded(numbers: str) -> str:
    """Numbers of a drawing in hundredths, on one line."""
    text = re.sub(r"-?\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), numbers)
    return " ".join(text.split())


def larger(drawing: str, factor: float = 1.25) -> str:
    """SVG at another size on a page; the text grows with it."""
    return re.sub(
        r'\b(width|height)="([\d.]+)pt"', lambda m: f'{m[1]}="{float(m[2]) * factor:.1f}pt"', drawing, count=2
    )


def css() -> str:
    """The variables of the colours: light, dark where the reader's system is, light on paper."""
    light = "".join(f"--c{colour[1:]}:{colour};" for colour in DARK)
    dark = "".join(f"--c{colour[1:]}:{other};" for colour, other in DARK.items())
    return (
        f":root{{color-scheme:light dark;{light}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
        f"@media print{{:root{{color-scheme:light;{light}}}}}"
    )


def save(figure: Figure, folder: Path, name: str) -> str:
    """Writes NAME.svg and NAME.png, and returns the SVG for a page that has `css()`."""
    inline = svg(figure, name)
    alone = inline.replace(">", f"><style>{css()}</style>", 1)
    write_atomic(folder / f"{name}.svg", f'<?xml version="1.0" encoding="utf-8"?>\n{alone}'.encode())
    pixels = io.BytesIO()
    figure.savefig(pixels, format="png", dpi=160, facecolor=PAPER)
    write_atomic(folder / f"{name}.png", pixels.getvalue())
    return larger(inline)
