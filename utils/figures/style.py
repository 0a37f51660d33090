"""Figures for a paper column: style, colours, axes, and files with their data beside them.

Only matplotlib's object API with the Agg and PDF canvases is used; the style holds inside
`figure_style()` and nothing is set at import.
"""

import io
import itertools
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.figures.kept import keep_if_wanted
from utils.files.writing import write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from utils.data.estimates import Estimate

COLUMN_WIDTH = 3.4  # inches, one column of a two-column page
PAGE_WIDTH = 6.8
PNG_DPI = 200
LAYER_LABEL = "layer (0-based decoder block)"
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
PALETTE = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", "-.", ":")

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
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        yield


def new_figure(width: float = COLUMN_WIDTH, height: float = 2.6, **grid: Any) -> "tuple[Figure, Any]":
    """A figure and its axes (`grid` as for `Figure.subplots`), in inches, laid out without overlaps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=PNG_DPI, layout="constrained")  # text is wider at low resolution
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**grid)


def panel_grid(n_panels: int) -> tuple[int, int]:
    """Rows and columns for small multiples on a page's width, up to about 80 of them."""
    n_columns = next((columns for columns, most in ((4, 16), (6, 36)) if n_panels <= most), 8)
    n_columns = min(n_panels, n_columns)
    return math.ceil(n_panels / n_columns), n_columns


# --- the data beside a figure ----------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """What a figure shows, as text: one value a cell."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    notes: tuple[str, ...] = ()

    def to_text(self) -> str:
        """Tab-separated: notes behind '#', a line of column names, then the rows; floats in full."""
        lines = [f"# {note}" for note in self.notes]
        lines += ["\t".join(_cell(value) for value in row) for row in [self.columns, *self.rows]]
        return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return repr(float(value))
    return " ".join(str(value).split())  # a tab or line break would make another cell


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a text table that `Table.to_text` wrote, by column name."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    columns = lines[0].split("\t")
    return [dict(zip(columns, line.split("\t"), strict=True)) for line in lines[1:]]


def with_suffix(stem: Path, suffix: str) -> Path:
    """The file `stem` + `suffix`; dots in the stem (as in multiplier=1.0) stay."""
    return stem.with_name(stem.name + suffix)


def save_figure(figure: "Figure", stem: Path, table: Table) -> list[Path]:
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


def save_table(stem: Path, table: Table) -> Path:
    path = with_suffix(stem, ".txt")
    write_text(path, table.to_text())
    return path


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


# --- lines -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LineStyle:
    """How one series looks; colour, marker and dashes together tell series apart in grey, too."""

    color: str
    marker: str = "o"
    dashes: str = "-"


def nth_style(index: int) -> LineStyle:
    """The style of the n-th of a few named series."""
    dashes = _DASHES[index // len(PALETTE) % len(_DASHES)]
    return LineStyle(PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)], dashes)


def multiplier_styles(multipliers: Iterable[float]) -> dict[float, LineStyle]:
    """A style for each multiplier: vermillion below 0, black at 0, blue above, paler towards 0."""
    from matplotlib.colors import to_hex, to_rgb

    wanted = sorted(set(multipliers))
    furthest = max((abs(value) for value in wanted), default=0.0)
    styles = {}
    for value in wanted:
        base = BLACK if value == 0 else BLUE if value > 0 else VERMILLION
        share = 0.0 if value == 0 else 0.55 * (1 - abs(value) / furthest)
        red, green, blue = (channel + (1 - channel) * share for channel in to_rgb(base))
        marker = "none" if value == 0 else "^" if value > 0 else "v"
        styles[value] = LineStyle(to_hex((red, green, blue)), marker)
    return styles


def draw_line(
    ax: "Axes",
    xs: Sequence[float],
    estimates: "Sequence[Estimate]",
    label: str,
    style: LineStyle,
    filled: Sequence[bool] | None = None,
    shift: float | None = None,
) -> None:
    """Draw a series with its intervals.

    Args:
        ax: Where.
        xs: One an estimate; estimates that do not exist are left out.
        estimates: Values and intervals.
        label: For the legend.
        style: Of the series.
        filled: Points whose marker is filled (default: all).
        shift: None draws the intervals as a band; a number moves the points by it and draws error
            bars, so that those of several series do not cover each other.
    """
    kept = [index for index, estimate in enumerate(estimates) if estimate.exists]
    at = [xs[index] + (shift or 0.0) for index in kept]
    values = [estimates[index].value for index in kept]
    lows = [_finite(estimates[index].low, estimates[index].value) for index in kept]
    highs = [_finite(estimates[index].high, estimates[index].value) for index in kept]
    ax.plot(at, values, color=style.color, linestyle=style.dashes, zorder=3)
    if shift is None and len(kept) > 1:
        faint = 0.08 if style.color == BLACK else 0.18
        ax.fill_between(at, lows, highs, color=style.color, alpha=faint, linewidth=0, zorder=2)
    else:
        errors = [
            [max(0.0, value - low) for value, low in zip(values, lows, strict=True)],
            [max(0.0, high - value) for value, high in zip(values, highs, strict=True)],
        ]
        ax.errorbar(at, values, yerr=errors, fmt="none", ecolor=style.color, elinewidth=0.8, capsize=1.5, zorder=3)
    for is_filled in (True, False):
        chosen = [place for place, index in enumerate(kept) if (filled is None or filled[index]) == is_filled]
        face = style.color if is_filled else "white"
        ax.plot(
            [at[place] for place in chosen],
            [values[place] for place in chosen],
            linestyle="none",
            marker=style.marker,
            markerfacecolor=face,
            markeredgecolor=style.color,
            zorder=4,
            markersize=3 if len(kept) <= 16 else 2,
            markeredgewidth=0.7 if len(kept) <= 16 else 0.5,
        )
    ax.plot([], [], color=style.color, linestyle=style.dashes, marker=style.marker, label=label)  # for the legend


def draw_row_marks(ax: "Axes", estimates: "Sequence[Estimate]", shift: float, label: str, style: LineStyle) -> None:
    """Draw one series over rows 0, 1, ...: a mark with a horizontal interval in each row."""
    kept = [(row, estimate) for row, estimate in enumerate(estimates) if estimate.exists]
    for row, estimate in kept:
        interval = [_finite(estimate.low, estimate.value), _finite(estimate.high, estimate.value)]
        ax.plot(interval, [row + shift] * 2, color=style.color, linewidth=0.7, zorder=2)
    ax.plot(
        [estimate.value for _, estimate in kept],
        [row + shift for row, _ in kept],
        linestyle="none",
        marker="o" if style.marker == "none" else style.marker,
        markersize=2.5,
        color=style.color,
        label=label,
        zorder=3,
    )


def _finite(value: float, otherwise: float) -> float:
    return value if math.isfinite(value) else otherwise


def dashed(style: LineStyle) -> LineStyle:
    """The same style for the other condition of a pair."""
    return replace(style, dashes="--")


# --- axes ------------------------------------------------------------------------------------------


def layer_axis(ax: "Axes", layers: Sequence[int]) -> None:
    """Label the x axis for layers, with no more ticks than fit."""
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel(LAYER_LABEL)
    if len(set(layers)) <= 8:
        ax.set_xticks(sorted(set(layers)))
    else:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True, steps=[1, 2, 4, 5, 10]))
    margin = max(0.5, 0.02 * (max(layers) - min(layers)))
    ax.set_xlim(min(layers) - margin, max(layers) + margin)


def multiplier_axis(ax: "Axes", multipliers: Sequence[float]) -> None:
    """Label the x axis for multipliers, with a tick at each where they fit."""
    ax.set_xlabel("multiplier of the steering vector (0: no steering)")
    wanted = sorted(set(multipliers))
    if len(wanted) <= 11:
        ax.set_xticks(wanted, [f"{value:g}" for value in wanted])
    margin = 0.08 * (wanted[-1] - wanted[0]) or 0.5
    ax.set_xlim(wanted[0] - margin, wanted[-1] + margin)


def dodge(index: int, n_series: int, positions: Sequence[float]) -> float:
    """How far to move series `index` of `n_series` sideways, so that error bars do not overlap."""
    wanted = sorted(set(positions))
    gap = min((after - before for before, after in itertools.pairwise(wanted)), default=1.0)
    return (index - (n_series - 1) / 2) * min(0.08, 0.5 / max(n_series, 1)) * gap


def set_title(figure: "Figure", title: str, *notes: str) -> None:
    """A title from the figure's left edge, wrapped, with a line for each note that is not empty."""
    figure.set_label(title)
    width = int(_TITLE_CHARACTERS * figure.get_figwidth() / COLUMN_WIDTH)
    lines = [line for text in (title, *notes) for line in textwrap.wrap(text, width)]
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=7)


def legend_below(figure: "Figure", ax: "Axes", title: str | None = None) -> None:
    """A legend under the axes, where it covers no data, in as many columns as the figure is wide."""
    handles, labels = ax.get_legend_handles_labels()
    for n_columns in range(min(4, len(labels)), 0, -1):
        legend = figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=n_columns,
            title=title,
            handlelength=2.2,
            columnspacing=1.2,
            title_fontsize=6,
        )
        if n_columns == 1 or legend.get_window_extent().width <= 0.98 * figure.bbox.width:
            return
        legend.remove()
