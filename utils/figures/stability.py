"""Figures and tables of how much vectors depend on their pairs, and how alike behaviors are beyond that."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.data.estimates import Estimate
from utils.evaluation.words import behavior_label
from utils.figures.lines import LineStyle, draw_line, layer_axis, legend_below
from utils.figures.style import BLUE, GREEN, ORANGE, PAGE_WIDTH, new_figure, panel_grid, set_title
from utils.files.tables import Table
from utils.vectors.stability import ENOUGH, Band, PairSimilarity, Stability

_GREY = "0.55"
_MOST_CURVES, _MOST_PANELS = 4, 4
_NULL = "pairs with random signs"

PairKey = tuple[str, str]
"""Two behaviors."""


def evenly(layers: Sequence[int], most: int) -> list[int]:
    """At most so many of the layers, evenly spread, the first and the last among them."""
    if len(layers) <= most:
        return list(layers)
    return [layers[round(place * (len(layers) - 1) / (most - 1))] for place in range(most)]


# --- one behavior ----------------------------------------------------------------------------------


def stability_figure(title: str, found: Mapping[int, Stability]) -> Figure:
    """Left: split halves over layers. Right: over the number of pairs, at a few layers."""
    layers = sorted(found)
    figure, axes = new_figure(PAGE_WIDTH, 2.9, ncols=2, sharey=True)
    left, right = axes
    over = [found[layer] for layer in layers]
    for bands, label, style in (
        ([one.null_halves for one in over], f"split halves, {_NULL}", LineStyle(_GREY, "s", "--")),
        ([one.halves for one in over], "split halves", LineStyle(BLUE, "o")),
    ):
        draw_line(left, layers, [_as_estimate(one) for one in bands], label, style)
    truth = [one.with_truth for one in over]
    draw_line(left, layers, truth, "with the vector of all possible pairs (estimated)", LineStyle(GREEN, "^"))
    layer_axis(left, layers)
    left.set_ylabel("cosine similarity")
    for layer, color in zip(evenly(layers, _MOST_CURVES), (BLUE, ORANGE, GREEN, "#CC79A7"), strict=False):
        _draw_curve(right, found[layer], f"layer {layer}", color)
    right.set_xscale("log", base=2)
    right.xaxis.set_major_formatter("{x:g}")
    right.set_xlabel("pairs in each of two disjoint sets")
    right.axhline(0, color=_GREY, linewidth=0.6)
    legend_below(figure, left)
    right.legend(loc="lower right")
    n = over[0].n_pairs
    set_title(
        figure,
        title,
        f"{n} pairs; bands: 95% of random halvings, for the estimate 95% jackknife; right: marks measured, lines "
        "expected from all pairs",
    )
    return figure


def _as_estimate(band: Band) -> Estimate:
    return Estimate(band.mean, band.low, band.high, 1, 1)


def _draw_curve(ax: Axes, found: Stability, label: str, color: str) -> None:
    sizes = [m for m, _, _ in found.curve]
    ax.plot(sizes, [expected for _, _, expected in found.curve], color=color, linewidth=0.8)
    bars: list[list[float]] = [[], []]
    for _, band, _ in found.curve:
        bars[0].append(band.mean - band.low)
        bars[1].append(band.high - band.mean)
    means = [band.mean for _, band, _ in found.curve]
    ax.errorbar(sizes, means, yerr=bars, fmt="o", color=color, markersize=3, capsize=2, linewidth=0.8, label=label)


def stability_table(title: str, found: Mapping[int, Stability]) -> Table:
    columns = (
        "layer", "n_pairs", "halves", "halves_low", "halves_high", "null", "null_low", "null_high",
        "bootstrap", "bootstrap_low", "bootstrap_high", "reliability", "reliability_low", "reliability_high",
        "with_truth", "with_truth_low", "with_truth_high", "enough_pairs",
    )  # fmt: skip
    rows = [
        (
            layer,
            one.n_pairs,
            *_numbers(one.halves),
            *_numbers(one.null_halves),
            *_numbers(one.bootstrap),
            *_limits(one.reliability),
            *_limits(one.with_truth),
            one.enough,
        )
        for layer, one in sorted(found.items())
    ]
    notes = (
        title,
        "halves: cosine of the vectors of two random halves of the pairs, mean and 95% of halvings; null: the same "
        "with each pair's sign drawn at random; bootstrap: cosine of the vector of resampled pairs with the vector",
        "reliability: expected cosine with a vector of as many new pairs; with_truth: with that of all possible pairs; "
        f"intervals: 95% jackknife over pairs; enough_pairs: where with_truth is expected to reach {ENOUGH}",
    )
    return Table(columns, rows, notes)


def curve_rows(found: Mapping[int, Stability]) -> list[dict[str, Any]]:
    """The curve over the number of pairs, for the JSON."""
    return [
        {"layer": layer, "pairs": m, "mean": band.mean, "low": band.low, "high": band.high, "expected": expected}
        for layer, one in sorted(found.items())
        for m, band, expected in one.curve
    ]


def stability_line(behavior: str, layer: int, one: Stability) -> str:
    """For the terminal."""
    enough = f"{math.ceil(one.enough)} pairs" if math.isfinite(one.enough) else "no number of pairs"
    truth = one.with_truth
    return (
        f"{behavior}, layer {layer}, {one.n_pairs} pairs: split halves {_band_text(one.halves)} "
        f"(random signs {_band_text(one.null_halves)}); cosine with the vector of all possible pairs about "
        f"{truth.value:.3f} [{truth.low:.3f}, {truth.high:.3f}]; {enough} for {ENOUGH}"
    )


def _band_text(band: Band) -> str:
    return f"{band.mean:.3f} [{band.low:.3f}, {band.high:.3f}]"


def _numbers(band: Band) -> tuple[float, float, float]:
    return band.mean, band.low, band.high


def _limits(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


# --- two behaviors ---------------------------------------------------------------------------------


def similarity_figure(title: str, found: Mapping[int, Mapping[PairKey, PairSimilarity]]) -> Figure:
    """A panel a layer (a few of them): every two behaviors with intervals, in front of the null's range."""
    layers = evenly(sorted(found), _MOST_PANELS)
    n_rows, n_columns = panel_grid(len(layers))
    pairs = list(next(iter(found.values())))
    figure, axes = new_figure(
        PAGE_WIDTH, 1.3 + n_rows * (0.5 + 0.14 * len(pairs)), nrows=n_rows, ncols=n_columns, sharey=True, squeeze=False
    )
    for ax, layer in zip(axes.flat, layers, strict=False):
        _draw_pairs(ax, found[layer], pairs)
        ax.set_title(f"layer {layer}", fontsize=7)
    labels = [" / ".join(behavior_label(one) for one in pair) for pair in pairs]
    axes[0, 0].set_yticks(range(len(pairs)), labels)
    axes[0, 0].set_ylim(len(pairs) - 0.5, -0.5)
    legend_below(figure, axes[0, 0])
    set_title(figure, title, f"95% jackknife over pairs; grey: 95% of {_NULL}; without noise: of all possible pairs")
    return figure


def _draw_pairs(ax: Axes, found: Mapping[PairKey, PairSimilarity], pairs: Sequence[PairKey]) -> None:
    for shift, name, color, marker, label in (
        (-0.18, "cosine", BLUE, "o", "vectors as they are"),
        (0.18, "without_noise", ORANGE, "D", "without noise"),
    ):
        there = [(row, getattr(found[pair], name)) for row, pair in enumerate(pairs)]
        there = [(row, one) for row, one in there if one.exists]
        rows = [row + shift for row, _ in there]
        for row, (_, one) in zip(rows, there, strict=True):
            ax.plot([one.low, one.high], [row, row], color=color, linewidth=0.8)
        ax.plot(
            [one.value for _, one in there], rows, linestyle="none", marker=marker, markersize=2.5, color=color,
            label=label,
        )  # fmt: skip
    for row, pair in enumerate(pairs):
        null = found[pair].null
        ax.barh(row, 2 * null, left=-null, height=0.8, color="0.85", zorder=0, label=_NULL if row == 0 else None)
    ax.axvline(0, color=_GREY, linewidth=0.6)
    ax.set_xlim(-1.02, 1.02)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("cosine similarity")


def similarity_table(title: str, found: Mapping[int, Mapping[PairKey, PairSimilarity]]) -> Table:
    rows = [
        (layer, *pair, *_limits(one.cosine), *_limits(one.without_noise), one.null, one.holds)
        for layer, of_layer in sorted(found.items())
        for pair, one in of_layer.items()
    ]
    columns = (
        "layer", "behavior", "other_behavior", "cosine", "cosine_low", "cosine_high", "without_noise",
        "without_noise_low", "without_noise_high", "null", "beyond_null",
    )  # fmt: skip
    notes = (
        title,
        "cosine: of the vectors; without_noise: of what all possible pairs would give (nan: a behavior's pairs agree "
        "on no direction); intervals: 95% jackknife over the pairs of both; null: 95% of the cosines lie "
        "within +- this with the signs of all pairs drawn at random",
    )
    return Table(columns, rows, notes)
