"""The figures of steering effects, each saved with its numbers as text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.behaviors import get_behavior
from utils.data.estimates import Estimate
from utils.evaluation.effects import ALPHA, LayerSteerability, LetterUse, Point
from utils.evaluation.metrics import mean_estimates
from utils.figures.style import (
    COLUMN_WIDTH,
    LAYER_LABEL,
    LineStyle,
    Table,
    dodge,
    draw_line,
    draw_row_marks,
    figure_style,
    latex_text,
    layer_axis,
    legend_below,
    multiplier_axis,
    multiplier_styles,
    new_figure,
    save_figure,
    set_title,
)
from utils.settings import ResultType

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

Y_LABELS: dict[ResultType, str] = {
    "ab": "p(answer matching behavior)",
    "open_ended": "judge's score (0-10)",
    "truthful_qa": "p(correct answer)",
    "mmlu": "p(correct answer)",
}
_LAYERS_WITH_ERROR_BARS = 8
_AGAINST_THE_NAME = "survival-instinct"


@dataclass(frozen=True)
class Series:
    """One line of a figure."""

    label: str
    style: LineStyle
    points: Sequence[Point]


# --- words -----------------------------------------------------------------------------------------


def meaning_note(behavior: str, result_type: ResultType) -> str:
    """What a high value means; empty for the knowledge tests, which ask no behavior."""
    if result_type in ("truthful_qa", "mmlu"):
        return ""
    return f"matching = {get_behavior(behavior).positive_meaning.split(' (')[0]}"


def against_the_name(behaviors: Sequence[str], result_type: ResultType) -> str | None:
    """For figures of several behaviors: the one whose name says the opposite of what is measured."""
    if _AGAINST_THE_NAME not in behaviors or result_type in ("truthful_qa", "mmlu"):
        return None
    return f"{get_behavior(_AGAINST_THE_NAME).label}: {meaning_note(_AGAINST_THE_NAME, result_type)}"


def count_note(estimates: Sequence[Estimate]) -> str:
    """How many items the values cover, e.g. `n=50`, `n=46 of 50`, `n=49-50 of 50`."""
    counts = sorted({estimate.n for estimate in estimates})
    totals = sorted({estimate.n_total for estimate in estimates})
    n, total = (str(found[0]) if len(found) == 1 else f"{found[0]}-{found[-1]}" for found in (counts, totals))
    return f"n={n}" if n == total else f"n={n} of {total}"


# --- tables ----------------------------------------------------------------------------------------

_EFFECT_NOTES = (
    "mean: over the n items that can be scored, of n_total; ci: 95% bootstrap interval over items (BCa); where "
    "fewer than 5 items differ from the most common value, one that allows for values that were not seen",
    "change: mean difference to multiplier 0 on the same n_paired items, with its interval",
    "p: two-sided bootstrap-t test that the change is 0 (no test where fewer than 5 items differ from the most "
    "common change); p_family: corrected for all layers and multipliers of the condition and behavior (step-down, "
    f"the smallest p of each resample); holds: p_family < {ALPHA:g}",
)


def effects_table(points: Sequence[Point], *notes: str) -> Table:
    columns = (
        "behavior",
        "condition",
        "layer",
        "multiplier",
        "mean",
        "ci_low",
        "ci_high",
        "n",
        "n_total",
        "change",
        "change_low",
        "change_high",
        "n_paired",
        "p",
        "p_family",
        "holds",
    )
    rows = [
        (
            p.behavior,
            p.condition.label,
            p.layer,
            p.multiplier,
            *_bounds(p.mean),
            p.mean.n,
            p.mean.n_total,
            *_bounds(p.change),
            p.change.n,
            p.p_value,
            p.p_family,
            p.holds,
        )
        for p in points
    ]
    return Table(columns, rows, (*(note for note in notes if note), *_EFFECT_NOTES))


def _bounds(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def steerability_table(of_behaviors: Mapping[str, Sequence[LayerSteerability]]) -> Table:
    columns = (
        "behavior",
        "layer",
        "multipliers",
        "slope",
        "slope_low",
        "slope_high",
        "n",
        "n_total",
        "anti_share",
        "anti_share_low",
        "anti_share_high",
    )
    rows = []
    for behavior, layers in of_behaviors.items():
        for at in layers:
            slope, anti = at.steerability.slope, at.steerability.anti_share
            used = " ".join(f"{multiplier:g}" for multiplier in at.multipliers)
            rows.append((behavior, at.layer, used, *_bounds(slope), slope.n, slope.n_total, *_bounds(anti)))
    notes = (
        "slope: mean over items of the least-squares slope of the matching answer's log-odds against the "
        "multiplier, with its 95% bootstrap interval (BCa)",
        "anti_share: share of items with a slope below 0, with its 95% Wilson interval",
    )
    return Table(columns, rows, notes)


def letters_table(uses: Sequence[LetterUse]) -> Table:
    columns = (
        "behavior",
        "condition",
        "layer",
        "multiplier",
        "letter_mass",
        "mass_low",
        "mass_high",
        "letter_bias",
        "bias_low",
        "bias_high",
        "n_bias",
        "n",
        "n_total",
    )
    rows = [
        (
            use.point.behavior,
            use.point.condition.label,
            use.point.layer,
            use.point.multiplier,
            *_bounds(use.mass),
            *_bounds(use.bias),
            use.bias.n,
            use.mass.n,
            use.mass.n_total,
        )
        for use in uses
    ]
    notes = (
        "letter_mass: mean probability on the item's two answer letters together",
        "letter_bias: mean p(A)/(p(A)+p(B)) where (A) matches, plus the same where (B) matches, minus 1; "
        "0: only the answers count, 1: always (A), -1: always (B); over the n_bias items with answers A and B",
    )
    return Table(columns, rows, notes)


def latex_rows(points: Sequence[Point], label: str) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table with a row for each behavior and condition, a column a multiplier."""
    multipliers = sorted({point.multiplier for point in points})
    by_row: dict[tuple[str, str], dict[float, Point]] = {}
    for point in points:
        by_row.setdefault((point.behavior, point.condition.label), {})[point.multiplier] = point
    rows = []
    for (behavior, condition), cells in by_row.items():
        numbers = [_latex_estimate(cells[m].mean) if m in cells else "--" for m in multipliers]
        count = count_note([point.mean for point in cells.values()]).removeprefix("n=")
        rows.append([latex_text(get_behavior(behavior).label), latex_text(condition), *numbers, count])
    return ["behavior", label, *(f"multiplier {m:g}" for m in multipliers), "n"], rows


def _latex_estimate(estimate: Estimate) -> str:
    if not math.isfinite(estimate.low):
        return f"${estimate.value:.2f}$"
    return f"${estimate.value:.2f}$ [${estimate.low:.2f}$, ${estimate.high:.2f}$]"


# --- figures ---------------------------------------------------------------------------------------


def plot_by_multiplier(
    stem: Path,
    title: str,
    series: Sequence[Series],
    result_type: ResultType,
    note: str = "",
    legend_title: str | None = None,
) -> list[Path]:
    """Mean against multiplier at one layer, a line for each series, with error bars."""
    points = [point for one in series for point in one.points]
    multipliers = [point.multiplier for point in points]
    with figure_style():
        figure, ax = new_figure(height=2.8 if len(series) < 4 else 3.2)
        for place, one in enumerate(series):
            xs = [point.multiplier for point in one.points]
            shift = dodge(place, len(series), multipliers)
            draw_line(ax, xs, [point.mean for point in one.points], one.label, one.style, shift=shift)
        multiplier_axis(ax, multipliers)
        _value_axis(ax, result_type)
        counts = count_note([point.mean for point in points])
        set_title(figure, title, note, f"mean with 95% interval over items, {counts}")
        if len(series) > 1:
            legend_below(figure, ax, legend_title)
        return save_figure(figure, stem, effects_table(points, note, legend_title or ""))


def plot_by_layer(
    stem: Path, title: str, series: Sequence[Series], result_type: ResultType, note: str = ""
) -> list[Path]:
    """One behavior over layers, a line for each multiplier; filled markers hold against multiplier 0."""
    points = [point for one in series for point in one.points]
    counts = count_note([point.mean for point in points])
    notes = (note, f"mean with 95% interval over items, {counts}")
    legend_title = "multiplier (filled: differs from multiplier 0, all layers taken together)"
    return _plot_over_layers(stem, title, notes, series, result_type, legend_title, effects_table(points, note))


def plot_sweep(
    stem: Path, title: str, series: Sequence[Series], result_type: ResultType, legend_title: str | None
) -> list[Path]:
    """Several behaviors over layers at one multiplier."""
    points = [point for one in series for point in one.points]
    notes = ("mean with 95% interval over items", "filled: differs from multiplier 0, all layers taken together")
    table = effects_table(points, legend_title or "")
    return _plot_over_layers(stem, title, notes, series, result_type, legend_title, table)


def _plot_over_layers(
    stem: Path,
    title: str,
    notes: Sequence[str],
    series: Sequence[Series],
    result_type: ResultType,
    legend_title: str | None,
    table: Table,
) -> list[Path]:
    """The mean over layers, and below it the change from multiplier 0 on the same items, where that is known."""
    points = [point for one in series for point in one.points]
    layers = sorted({point.layer for point in points})
    has_change = any(point.change.exists for point in points)
    with figure_style():
        figure, axes = new_figure(height=4.8 if has_change else 3.2, nrows=1 + has_change, sharex=True, squeeze=False)
        top, bottom = axes[0, 0], axes[-1, 0]
        for place, one in enumerate(series):
            xs = [point.layer for point in one.points]
            filled = [point.holds or point.multiplier == 0 for point in one.points]
            shift = dodge(place, len(series), layers) if len(layers) <= _LAYERS_WITH_ERROR_BARS else None
            draw_line(top, xs, [point.mean for point in one.points], one.label, one.style, filled, shift)
            if any(point.change.exists for point in one.points):
                draw_line(bottom, xs, [point.change for point in one.points], one.label, one.style, filled, shift)
        _value_axis(top, result_type)
        layer_axis(bottom, layers)
        if has_change:
            bottom.set_ylabel("change from multiplier 0")
            bottom.axhline(0, color="#666666", linewidth=0.6)
        set_title(figure, title, *notes)
        legend_below(figure, top, legend_title)
        return save_figure(figure, stem, table)


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
                slopes.set_title(get_behavior(behavior).label, loc="left", fontsize=7, pad=2)
        _label_steerability(figure, axes, title, of_behaviors, result_type)
        return save_figure(figure, stem, steerability_table(of_behaviors))


def _label_steerability(
    figure: "Figure",
    axes: "NDArray",
    title: str,
    of_behaviors: Mapping[str, Sequence[LayerSteerability]],
    result_type: ResultType,
) -> None:
    layers = [at.layer for found in of_behaviors.values() for at in found]
    counts = count_note([at.steerability.slope for found in of_behaviors.values() for at in found])
    note = f"mean over items with 95% interval, {counts}"
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
    set_title(figure, title, panels, note, against_the_name(list(of_behaviors), result_type) or "")
    for ax in axes[-1]:
        layer_axis(ax, layers)
        ax.set_xlabel("")
    figure.supxlabel(LAYER_LABEL, fontsize=7)


def plot_categories(stem: Path, title: str, points: Sequence[Point], seed: int) -> list[Path]:
    """Mean by category of the knowledge tests: a row for each category, a mark for each multiplier."""
    categories = sorted({category for point in points for category in point.items.categories if category})
    styles = multiplier_styles([point.multiplier for point in points])
    rows: list[tuple[object, ...]] = []
    with figure_style():
        figure, ax = new_figure(COLUMN_WIDTH, 1.3 + 0.125 * len(categories))
        for place, point in enumerate(points):
            found = np.array(point.items.categories)
            of_category = np.where(found[None, :] == np.array(categories)[:, None], point.items.values, np.nan)
            totals = [int((found == category).sum()) for category in categories]
            means = [replace(m, n_total=n) for m, n in zip(mean_estimates(of_category, seed), totals, strict=True)]
            shift = (place - (len(points) - 1) / 2) * 0.7 / max(len(points), 1)
            draw_row_marks(ax, means, shift, f"{point.multiplier:g}", styles[point.multiplier])
            rows += [
                (point.behavior, point.layer, point.multiplier, category, *_bounds(mean), mean.n, mean.n_total)
                for category, mean in zip(categories, means, strict=True)
            ]
        ax.set_yticks(range(len(categories)), [category.replace("_", " ") for category in categories])
        ax.set_ylim(len(categories) - 0.4, -0.6)
        ax.set_xlim(-0.02, 1.02)
        ax.set_xlabel("p(correct answer)")
        set_title(figure, title, "mean with 95% interval over the items of the category")
        legend_below(figure, ax, "multiplier")
        columns = ("behavior", "layer", "multiplier", "category", "mean", "ci_low", "ci_high", "n", "n_total")
        return save_figure(figure, stem, Table(columns, rows, _EFFECT_NOTES[:1]))


def _value_axis(ax: "Axes", result_type: ResultType) -> None:
    ax.set_ylabel(Y_LABELS[result_type])
    if result_type == "open_ended":
        low, high = ax.get_ylim()
        ax.set_ylim(max(-0.2, low), min(10.2, high))
