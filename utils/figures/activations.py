"""Figures of saved activations on their principal components, each with its numbers as text."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from utils.data.records import ContrastPair
from utils.evaluation.separation import LayerActivations, Separation
from utils.evaluation.words import behavior_label, meaning_note
from utils.figures.style import (
    BLUE,
    PAGE_WIDTH,
    VERMILLION,
    figure_style,
    new_figure,
    panel_grid,
    save_figure,
    set_title,
)
from utils.files.tables import Table

SIDES = ("matching", "not matching")
_SIDE_COLORS = (BLUE, VERMILLION)
_LETTER_MARKERS = dict(zip("ABCDEFGH", ("o", "^", "s", "D", "v", "P", "X", "*"), strict=True))
_SHEET_DPI = 300  # of the points, which are pixels on the sheet: tens of thousands of shapes would choke a reader
_MANY_POINTS = 400
_NOTES = (
    "both on pairs that the steering vector (mean difference) was not made from; 0.5: chance; telling letters apart "
    "does not count",
    "auc: probability that a matching answer lies further along the steering vector than a not matching answer with "
    "the same letter",
    "pairs_apart: share of pairs whose matching half lies further along than their other half, both ways round of two "
    "letters weighing the same, over the n_balanced pairs that this is possible for; apart_low, apart_high: its 95% "
    "interval",
    "steering_vector_norm: norm of the mean difference of all pairs",
)


@dataclass(frozen=True)
class Drawn:
    """What the points of a figure are."""

    behavior: str
    model_label: str
    pairs: Sequence[ContrastPair]
    seed: int
    """Of the order in which points are drawn over each other."""

    @property
    def letters(self) -> list[str]:
        """The letter read at each point: the matching answers of all pairs, then the other answers."""
        return [pair.matching_letter for pair in self.pairs] + [pair.other_letter for pair in self.pairs]

    def title(self, where: str) -> str:
        return f"{behavior_label(self.behavior)}, {where}, {self.model_label} (PCA)"


def plot_layer(stem: Path, drawn: Drawn, view: LayerActivations) -> list[Path]:
    """One layer: colour is the side, the marker the letter."""
    with figure_style():
        figure, ax = new_figure(height=3.4)
        _scatter(ax, drawn, view, size=10)
        ax.set_xlabel(f"PC 1 ({_percent(view.projection.explained[0], 1)} of variance)")
        ax.set_ylabel(f"PC 2 ({_percent(view.projection.explained[1], 1)} of variance)")
        _legend(figure, drawn)
        note = separation_note(view.separation)
        set_title(figure, drawn.title(f"layer {view.layer}"), meaning_note(drawn.behavior, "ab"), note)
        return save_figure(figure, stem, layer_table(drawn, view))


def plot_sheet(stem: Path, drawn: Drawn, views: Sequence[LayerActivations]) -> list[Path]:
    """All layers as small multiples."""
    n_rows, n_columns = panel_grid(len(views))
    with figure_style():
        figure, axes = new_figure(
            PAGE_WIDTH, 1.0 + n_rows * (PAGE_WIDTH / n_columns + 0.05), nrows=n_rows, ncols=n_columns, squeeze=False
        )
        figure.set_dpi(_SHEET_DPI)
        for ax, view in zip(axes.flat, views, strict=False):
            _scatter(ax, drawn, view, size=24 / n_columns, rasterized=True)
            _label_panel(ax, view)
        for ax in axes.flat[len(views) :]:
            ax.set_axis_off()
        _legend(figure, drawn)
        set_title(
            figure,
            drawn.title(f"layers {views[0].layer} to {views[-1].layer}"),
            meaning_note(drawn.behavior, "ab"),
            "layer: AUC along the steering vector of other pairs, at equal letter (0.5: chance), "
            f"{len(drawn.pairs)} pairs; axes: share of the variance",
        )
        return save_figure(figure, stem, sheet_table(views))


def _label_panel(ax: Axes, view: LayerActivations) -> None:
    ax.set_title(f"layer {view.layer}: {_auc(view.separation)}", fontsize=6, pad=2)
    ax.set_xlabel(f"PC 1: {_percent(view.projection.explained[0])}", fontsize=5, labelpad=1)
    ax.set_ylabel(f"PC 2: {_percent(view.projection.explained[1])}", fontsize=5, labelpad=1)
    ax.set_xticks([])
    ax.set_yticks([])


def _scatter(ax: Axes, drawn: Drawn, view: LayerActivations, size: float, rasterized: bool = False) -> None:
    """Draw the points, rare letters last; sides mixed, so that neither covers the other."""
    letters = np.array(drawn.letters)
    size *= 1 if len(letters) <= _MANY_POINTS else 0.5
    colors = np.repeat(np.array(_SIDE_COLORS), len(drawn.pairs))
    mixed = np.random.default_rng(drawn.seed).permutation(len(letters))
    for letter, count in Counter(drawn.letters).most_common():
        chosen = mixed[letters[mixed] == letter]
        is_rare = count < 0.1 * len(letters)
        x, y = view.projection.coordinates[chosen].T
        ax.scatter(
            x,
            y,
            s=size * (3 if is_rare else 1),
            c=list(colors[chosen]),
            marker=letter_marker(letter),
            alpha=0.9 if is_rare else 0.55,
            linewidths=0.2 if is_rare else 0,
            edgecolors="white",
            rasterized=rasterized,
        )


def letter_marker(letter: str) -> str:
    """A shape for each of the first letters; the letter itself for those beyond."""
    return _LETTER_MARKERS.get(letter, f"${letter}$")


def _legend(figure: Figure, drawn: Drawn) -> None:
    """Both sides, and every letter with the number of its points."""

    def entry(label: str, color: str, marker: str) -> Line2D:
        return Line2D([], [], linestyle="none", color=color, marker=marker, markersize=4, label=label)

    sides = [entry(side, color, "o") for side, color in zip(SIDES, _SIDE_COLORS, strict=True)]
    counts = sorted(Counter(drawn.letters).items())
    letters = [entry(f"({letter}) {count}", "#555555", letter_marker(letter)) for letter, count in counts]
    most = 4 if figure.get_figwidth() < PAGE_WIDTH else 10
    figure.legend(
        handles=[*sides, *letters],
        loc="outside lower center",
        ncols=min(2 + len(letters), most),
        handletextpad=0.1,
        columnspacing=1.2,
        title="colour: side of the pair; marker: letter read, with its points",
        title_fontsize=6,
    )


# --- words and tables ------------------------------------------------------------------------------


def separation_note(separation: Separation) -> str:
    apart = separation.pairs_apart
    note = f"along the steering vector of other pairs: AUC {_auc(separation)} at equal letter; pairs apart "
    if not apart.exists:
        return f"{note}n/a, {apart.n_total} pairs"
    count = f"{apart.n}" if apart.n == apart.n_total else f"{apart.n} of {apart.n_total}"
    return f"{note}{_percent(apart.value)} [{_percent(apart.low)}, {_percent(apart.high)}], n={count}"


def _auc(separation: Separation) -> str:
    return f"{separation.auc:.2f}" if np.isfinite(separation.auc) else "n/a"


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f}%" if np.isfinite(share) else "n/a"


def layer_table(drawn: Drawn, view: LayerActivations) -> Table:
    """A row for each point."""
    n_pairs = len(drawn.pairs)
    sides = [SIDES[0]] * n_pairs + [SIDES[1]] * n_pairs
    rows = [
        (index % n_pairs, side, letter, float(x), float(y))
        for index, (side, letter, (x, y)) in enumerate(
            zip(sides, drawn.letters, view.projection.coordinates, strict=True)
        )
    ]
    apart = view.separation.pairs_apart
    numbers = (
        f"layer={view.layer} model={drawn.model_label} behavior={drawn.behavior} "
        f"explained_1={view.projection.explained[0]!r} explained_2={view.projection.explained[1]!r}",
        f"auc={view.separation.auc!r} pairs_apart={apart.value!r} apart_low={apart.low!r} apart_high={apart.high!r} "
        f"n_balanced={apart.n} n_pairs={n_pairs} steering_vector_norm={view.vector_norm!r}",
    )
    return Table(("pair", "side", "letter", "pc_1", "pc_2"), rows, (*numbers, *_NOTES))


def sheet_table(views: Sequence[LayerActivations]) -> Table:
    """A row for each layer."""
    columns = (
        "layer",
        "n_pairs",
        "explained_1",
        "explained_2",
        "auc",
        "pairs_apart",
        "apart_low",
        "apart_high",
        "n_balanced",
        "steering_vector_norm",
    )
    rows = []
    for view in views:
        apart = view.separation.pairs_apart
        separation = (view.separation.auc, apart.value, apart.low, apart.high, apart.n)
        rows.append((view.layer, view.n_pairs, *view.projection.explained, *separation, view.vector_norm))
    return Table(columns, rows, ("explained: share of the variance along the component, 0 to 1", *_NOTES))
