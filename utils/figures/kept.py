"""Figures kept as SVG while they are drawn, for a page that shows them; otherwise nothing is kept."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from utils.files.tables import Table

_SVG_STYLE: Any = {"svg.fonttype": "path", "svg.hashsalt": "caa"}  # letters as shapes: no font has to be installed
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
_WIDE = 5.0  # inches, between a column's width and a page's
_PROLOGUE = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->|<metadata>.*?</metadata>", re.DOTALL)
_COORDINATES = re.compile(r'(?<= [dxy]=")[^"]*(?=")')
_STYLE = re.compile(r'(?<= style=")[^"]*(?=")')
_FRACTION = re.compile(r"(\.\d\d)\d+")


@dataclass(frozen=True)
class KeptFigure:
    """A figure as it was saved."""

    stem: Path
    """Of its files, without suffix."""
    title: str
    text: str
    """Title and notes, as they stand in the figure."""
    axes: str
    """What is plotted against what, in words."""
    names: str
    """What is shown in it, by its legend and the titles of its panels, in words."""
    svg: str
    is_wide: bool
    """Whether it takes a page's width instead of a column's."""
    table: "Table"


_kept: ContextVar[list[KeptFigure] | None] = ContextVar("kept", default=None)


@contextmanager
def keep_figures(figures: list[KeptFigure] | None) -> Iterator[None]:
    """Within the block, every figure that is saved is appended to `figures` as well (None: not kept)."""
    token = _kept.set(figures)
    try:
        yield
    finally:
        _kept.reset(token)


def keep_if_wanted(figure: Figure, stem: Path, table: "Table") -> None:
    """Called by `utils.figures.style.save_figure`."""
    if (figures := _kept.get()) is not None:
        text = " ".join(figure.get_suptitle().split())
        figures.append(
            KeptFigure(
                stem,
                str(figure.get_label()) or text,
                text,
                describe_axes(figure),
                describe_names(figure),
                to_svg(figure),
                figure.get_figwidth() > _WIDE,
                table,
            )
        )


def to_svg(figure: Figure) -> str:
    """The figure as one `<svg>` element, the same each time.

    Coordinates are cut to hundredths of a point, which no screen shows and which halves its size.
    """
    buffer = io.BytesIO()
    with mpl.rc_context(_SVG_STYLE):
        figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
    text = _COMMENT.sub("", _PROLOGUE.sub("", buffer.getvalue().decode("utf-8"), count=1))
    text = _COORDINATES.sub(lambda data: _FRACTION.sub(r"\1", data.group()), text)
    text = _STYLE.sub(lambda style: style.group().replace(": ", ":").replace("; ", ";"), text)
    return " ".join(text.split())


def describe_axes(figure: Figure) -> str:
    axes: list[Axes] = figure.get_axes()
    across = _joined("Horizontal", [*(ax.get_xlabel() for ax in axes), figure.get_supxlabel()])
    up = _joined("Vertical", [*(ax.get_ylabel() for ax in axes), figure.get_supylabel()])
    return f"{across} {up}".strip()


def describe_names(figure: Figure) -> str:
    axes: list[Axes] = figure.get_axes()
    labels = [label for ax in axes for label in ax.get_legend_handles_labels()[1]] if figure.legends else []
    found = _joined("Shown", [*labels, *(ax.get_title(loc="left") for ax in axes)])
    titles = {legend.get_title().get_text() for legend in figure.legends} - {""}
    return " ".join([found, *(f"({' '.join(title.split())})" for title in sorted(titles))])


def _joined(word: str, texts: list[str]) -> str:
    distinct = dict.fromkeys(" ".join(text.split()) for text in texts)
    found = "; ".join(text for text in distinct if text)
    return f"{word}: {found}." if found else ""
