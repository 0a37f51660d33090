"""Lines with intervals, their styles, and the axes that they are drawn over."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation, Transform
from numpy.typing import NDArray

from utils.data.estimates import Estimate
from utils.evaluation.metrics import FloatArray
from utils.evaluation.words import VALUE_LABELS
from utils.figures.style import BLACK, BLUE, COLUMN_WIDTH, GREEN, ORANGE, PURPLE, SKY, VERMILLION
from utils.settings import ResultType

PALETTE = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LAYER_LABEL = "layer (0-based decoder block)"
_DASHES = ("-", "--", "-.", ":")
_MOST_COLUMNS = 8  # of a legend
_LEGEND_CHARACTERS = 64  # of a legend's title, fit COLUMN_WIDTH
_DODGE = 2.5  # points, 1/72 inch
_WIDE_RANGE = 8  # largest by smallest multiplier, above which a linear axis would hide the small ones


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
    ax: Axes,
    xs: Sequence[float],
    estimates: Sequence[Estimate],
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
        shift: None draws the intervals as a band; a number draws error bars, and moves what is drawn to the right
            by it (in points, 1/72 inch), so that the error bars of several series do not cover each other.
    """
    kept = [index for index, estimate in enumerate(estimates) if estimate.exists]
    at = [xs[index] for index in kept]
    values = [estimates[index].value for index in kept]
    lows = [_finite(estimates[index].low, estimates[index].value) for index in kept]
    highs = [_finite(estimates[index].high, estimates[index].value) for index in kept]
    moved: Any = {} if not shift else {"transform": _moved(ax, shift)}
    ax.plot(at, values, color=style.color, linestyle=style.dashes, zorder=3, **moved)
    if shift is None and len(kept) > 1:
        faint = 0.08 if style.color == BLACK else 0.18
        ax.fill_between(at, lows, highs, color=style.color, alpha=faint, linewidth=0, zorder=2)
        for edge in (lows, highs):  # bands that cover each other are told apart by their edges
            ax.plot(at, edge, color=style.color, linestyle=style.dashes, linewidth=0.4, alpha=0.7, zorder=2)
    else:
        _draw_error_bars(ax, at, lows, highs, style.color, moved)
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
            **moved,
        )
    ax.plot([], [], color=style.color, linestyle=style.dashes, marker=style.marker, label=label)  # for the legend
    ax.update_datalim([*zip(at, lows, strict=True), *zip(at, highs, strict=True)])  # moved lines do not count there
    ax.autoscale_view()


def _moved(ax: Axes, points: float) -> Transform:
    figure = ax.get_figure(root=True)
    assert figure is not None
    return ax.transData + ScaledTranslation(points / 72, 0, figure.dpi_scale_trans)


def _draw_error_bars(
    ax: Axes, at: Sequence[float], lows: Sequence[float], highs: Sequence[float], color: str, moved: Any
) -> None:
    gap = math.nan
    xs = [x for place in at for x in (place, place, gap)]
    ys = [y for low, high in zip(lows, highs, strict=True) for y in (low, high, gap)]
    ax.plot(xs, ys, color=color, linewidth=0.8, marker="_", markersize=3, markeredgewidth=0.8, zorder=3, **moved)


def draw_level(ax: Axes, xs: Sequence[float], estimates: Sequence[Estimate], label: str, style: LineStyle) -> None:
    """A thin line through the values, without intervals: a reference beside what is shown. In the legend as others."""
    kept = [index for index, estimate in enumerate(estimates) if estimate.exists]
    values = [estimates[index].value for index in kept]
    ax.plot([xs[index] for index in kept], values, color=style.color, linestyle=style.dashes, linewidth=0.7, zorder=3)
    ax.plot([], [], color=style.color, linestyle=style.dashes, marker=style.marker, label=label)


def draw_row_marks(ax: Axes, estimates: Sequence[Estimate], shift: float, label: str, style: LineStyle) -> None:
    """Draw one series over rows 0, 1, ...: a mark with a horizontal interval, where there is one, in each row."""
    kept = [(row, estimate) for row, estimate in enumerate(estimates) if estimate.exists]
    for row, estimate in kept:
        if math.isfinite(estimate.low):
            ax.plot([estimate.low, estimate.high], [row + shift] * 2, color=style.color, linewidth=0.7, zorder=2)
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


def draw_row_items(ax: Axes, items: Sequence[FloatArray], shift: float, style: LineStyle) -> None:
    """The values of single items as small dots over rows 0, 1, ..."""
    ax.plot(
        [float(value) for values in items for value in values],
        [row + shift for row, values in enumerate(items) for _ in values],
        linestyle="none",
        marker=".",
        markersize=3.5,
        markeredgewidth=0,
        color=style.color,
        alpha=0.7,
        zorder=2,
    )


def _finite(value: float, otherwise: float) -> float:
    return value if math.isfinite(value) else otherwise


def dashed(style: LineStyle) -> LineStyle:
    """The same style for the other condition of a pair."""
    return replace(style, dashes="--")


# --- axes ------------------------------------------------------------------------------------------


def layer_axis(ax: Axes, layers: Sequence[int]) -> None:
    """Label the x axis for layers, with no more ticks than fit."""
    ax.set_xlabel(LAYER_LABEL)
    if len(set(layers)) <= 8:
        ax.set_xticks(sorted(set(layers)))
    else:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True, steps=[1, 2, 4, 5, 10]))
    margin = max(0.5, 0.02 * (max(layers) - min(layers)))
    ax.set_xlim(min(layers) - margin, max(layers) + margin)


def multiplier_axis(ax: Axes, multipliers: Sequence[float]) -> None:
    """Label the x axis for multipliers, with a tick at each where they fit; logarithmic where they range widely."""
    wanted = sorted(set(multipliers))
    ax.set_xlabel(multiplier_label(wanted))
    smallest = _smallest_of_wide_range(wanted)
    if smallest:
        ax.set_xscale("symlog", linthresh=smallest)
        ax.xaxis.set_minor_locator(NullLocator())
    if len(wanted) <= 11:
        ax.set_xticks(wanted, [f"{value:g}" for value in wanted])
    margin = 0.08 * (wanted[-1] - wanted[0]) or 0.5
    ax.set_xlim(*((1.25 * wanted[0], 1.25 * wanted[-1]) if smallest else (wanted[0] - margin, wanted[-1] + margin)))


def multiplier_label(multipliers: Sequence[float]) -> str:
    smallest = _smallest_of_wide_range(multipliers)
    note = f"log scale beyond {smallest:g}" if smallest else "0: no steering"
    return f"multiplier of the steering vector ({note})"


def _smallest_of_wide_range(multipliers: Sequence[float]) -> float:
    """The smallest size of a multiplier other than 0 where the largest is many times that; else 0."""
    sizes = {abs(value) for value in multipliers if value}
    return min(sizes) if sizes and max(sizes) > _WIDE_RANGE * min(sizes) else 0.0


def value_axis(ax: Axes, result_type: ResultType) -> None:
    """Label the y axis for results, within the range that they can have."""
    ax.set_ylabel(VALUE_LABELS[result_type])
    ax.ticklabel_format(axis="y", useOffset=False)
    if result_type == "open_ended":
        low, high = ax.get_ylim()
        ax.set_ylim(max(-0.2, low), min(10.2, high))


def dodge(index: int, n_series: int) -> float:
    """How far to move series `index` of `n_series` sideways, in points, so that error bars do not overlap."""
    return (index - (n_series - 1) / 2) * _DODGE


def hide_beyond(axes: NDArray[Any], n_panels: int) -> None:
    """Take away the panels of a grid behind the first `n_panels`; those above show the ticks of the axis they end."""
    n_columns = axes.shape[1]
    for index in range(n_panels, axes.size):
        axes.flat[index].set_axis_off()
        if index >= n_columns:
            axes.flat[index - n_columns].tick_params(labelbottom=True)


def legend_below(figure: Figure, ax: Axes, title: str | None = None) -> None:
    """A legend under the axes, where it covers no data, in as many columns as the figure is wide."""
    handles, labels = ax.get_legend_handles_labels()
    if title:
        title = textwrap.fill(title, int(_LEGEND_CHARACTERS * figure.get_figwidth() / COLUMN_WIDTH))
    for n_columns in range(min(_MOST_COLUMNS, len(labels)), 0, -1):
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
