"""Figures of steerability: how far the multiplier moves single items, and how many it moves the wrong way."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from numpy.typing import NDArray

from utils.evaluation.effects import LayerSteerability
from utils.evaluation.words import INTERVAL, against_the_name, behavior_label, count_note, meaning_note
from utils.figures.lines import LAYER_LABEL, LineStyle, draw_line, layer_axis
from utils.figures.style import figure_style, new_figure, save_figure, set_title
from utils.figures.tables import steerability_table
from utils.settings import ResultType


def plot_steerability(
    stem: Path,
    title: str,
    of_behaviors: Mapping[str, Sequence[LayerSteerability]],
    styles: Mapping[str, LineStyle],
    result_type: ResultType,
) -> list[Path]:
    """Steerability over layers and the share of items that steering moves the wrong way, a row a behavior."""
    one = len(of_behaviors) == 1
    with figure_style():
        shape = {"nrows": 2} if one else {"nrows": len(of_behaviors), "ncols": 2}
        figure, axes = new_figure(height=4.0 if one else 0.7 + len(of_behaviors), squeeze=False, sharex=True, **shape)
        axes = axes.reshape(-1, 2)  # [n_behaviors, slope and share]
        for (slopes, shares), (behavior, found) in zip(axes, of_behaviors.items(), strict=True):
            xs = [at.layer for at in found]
            draw_line(slopes, xs, [at.steerability.slope for at in found], "", styles[behavior])
            draw_line(shares, xs, [at.steerability.anti_share for at in found], "", styles[behavior])
            slopes.axhline(0, color="#666666", linewidth=0.6)
            shares.axhline(0.5, color="#666666", linewidth=0.6, linestyle=":")
            shares.set_ylim(-0.02, 1.02)
            if not one:
                slopes.set_title(behavior_label(behavior), loc="left", fontsize=7, pad=2)
        _label_steerability(figure, axes, title, of_behaviors, result_type)
        return save_figure(figure, stem, steerability_table(of_behaviors))


def _label_steerability(
    figure: Figure,
    axes: NDArray,
    title: str,
    of_behaviors: Mapping[str, Sequence[LayerSteerability]],
    result_type: ResultType,
) -> None:
    layers = [at.layer for found in of_behaviors.values() for at in found]
    counts = count_note([at.steerability.slope for found in of_behaviors.values() for at in found])
    note = f"mean with {INTERVAL}, {counts}"
    what = ("slope of log-odds", "share against")
    if len(of_behaviors) == 1:
        set_title(figure, title, meaning_note(next(iter(of_behaviors)), result_type), note)
        for ax, label in zip(axes[0], what, strict=True):
            ax.set_ylabel(label)
        layer_axis(axes[0, 1], layers)
        return
    lowest = min(ax.get_ylim()[0] for ax in axes[:, 0])
    highest = max(ax.get_ylim()[1] for ax in axes[:, 0])
    for ax in axes[:, 0]:
        ax.set_ylim(lowest, highest)
    panels = "left: slope of the item's log-odds; right: share moved against"
    set_title(figure, title, panels, note, against_the_name(list(of_behaviors), result_type))
    for ax in axes[-1]:
        layer_axis(ax, layers)
        ax.set_xlabel("")
    figure.supxlabel(LAYER_LABEL, fontsize=7)
