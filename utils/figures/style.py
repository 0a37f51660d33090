"""Figures for a paper column: style, colours, sizes, titles, and files with their data beside them.

Only matplotlib's object API with the Agg and PDF canvases is used; the style holds inside
`figure_style()` and nothing is set at import.
"""

import io
import logging
import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from utils.figures.kept import keep_if_wanted
from utils.files.tables import Table, save_table, with_suffix
from utils.files.writing import write_bytes, write_text

log = logging.getLogger(__name__)

COLUMN_WIDTH = 3.4  # inches, one column of a two-column page
PAGE_WIDTH = 6.8
PNG_DPI = 200
_TITLE_CHARACTERS = 66  # fit COLUMN_WIDTH at 7 points

# Okabe & Ito (2008), told apart with every common colour blindness; yellow is too light for lines
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.titlesize": 8,
    "axes.labelsize": 7,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "legend.fontsize": 6,
    "figure.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.4,
    "axes.axisbelow": True,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.1,
    "lines.markersize": 3,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # TrueType: text stays text in the paper
    "svg.fonttype": "none",
    "text.parse_math": False,  # a $ in a title or a model's name is a $
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw and save inside this block."""
    with mpl.rc_context(_STYLE):
        yield


def new_figure(width: float = COLUMN_WIDTH, height: float = 2.6, **grid: Any) -> tuple[Figure, Any]:
    """A figure and its axes (`grid` as for `Figure.subplots`), in inches, laid out without overlaps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=PNG_DPI, layout="constrained")  # text is wider at low resolution
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**grid)


def panel_grid(n_panels: int) -> tuple[int, int]:
    """Rows and columns for small multiples on a page's width, up to about 80 of them."""
    n_columns = next((columns for columns, most in ((4, 16), (6, 36)) if n_panels <= most), 8)
    n_columns = min(n_panels, n_columns)
    return math.ceil(n_panels / n_columns), n_columns


# --- files -----------------------------------------------------------------------------------------


def save_figure(figure: Figure, stem: Path, table: Table) -> list[Path]:
    """Write `stem`.png, `stem`.pdf and, with what they show, `stem`.txt; each file is whole or absent."""
    figure.draw_without_rendering()  # lays the axes out once for both formats
    figure.set_layout_engine(None)  # done: saving need not lay out again
    paths = []
    for suffix, options in (
        (".png", {"dpi": PNG_DPI, "metadata": {"Software": None}}),
        (".pdf", {"metadata": {"CreationDate": None, "Producer": None, "Creator": None}}),
    ):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], **options)
        paths.append(with_suffix(stem, suffix))
        write_bytes(paths[-1], buffer.getvalue())
    paths.append(save_table(stem, table))
    keep_if_wanted(figure, stem, table)
    return paths


def log_written(paths: Sequence[Path]) -> int:
    """Say which files of a figure or table were written; one of them, for counting."""
    first = paths[0]
    log.info("wrote %s (%s)", first.with_name(first.name[: -len(first.suffix)]), ", ".join(p.suffix[1:] for p in paths))
    return 1


_LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def latex_text(text: str) -> str:
    return "".join(_LATEX_SPECIAL.get(character, character) for character in text)


def save_latex_rows(stem: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    """Write table rows for LaTeX; the column names stand in a comment. Cells are LaTeX already."""
    lines = [f"% {' & '.join(header)}", *(" & ".join(row) + r" \\" for row in rows)]
    path = with_suffix(stem, ".tex")
    write_text(path, "\n".join(lines) + "\n")
    return path


# --- words in a figure ----------------------------------------------------------------------------


def set_title(figure: Figure, title: str, *notes: str) -> None:
    """A title from the figure's left edge, wrapped, with a line for each note that is not empty."""
    figure.set_label(title)
    width = int(_TITLE_CHARACTERS * figure.get_figwidth() / COLUMN_WIDTH)
    lines = [line for text in (title, *notes) for line in textwrap.wrap(text, width)]
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=7)
