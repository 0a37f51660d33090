"""Figures of steering vectors: similarities as heatmaps and lines, norms; and their numbers as tables.

Tables and figures are made apart, so that a script can compare a table with the one on disk before
it draws anything.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.data.estimates import Estimate
from utils.evaluation.words import behavior_label
from utils.figures.lines import draw_line, layer_axis, legend_below
from utils.figures.results import behavior_style
from utils.figures.style import COLUMN_WIDTH, PAGE_WIDTH, new_figure, panel_grid, set_title
from utils.files.tables import Table
from utils.vectors.similarity import FloatArray

_NOT_THERE = "nan: there is no such vector, or it is all zeros"
_GREY = "#bbbbbb"
_MAX_TICKS = 12
_WRITE_VALUES_UP_TO = 8  # rows of a heatmap panel that has room for numbers


# --- heatmaps --------------------------------------------------------------------------------------


def layers_figure(title: str, note: str, matrix: FloatArray, layers: Sequence[int]) -> Figure:
    """Similarity of every layer's vector with every other layer's, [n_layers, n_layers]."""
    figure, ax = new_figure(COLUMN_WIDTH, 3.3)
    _heatmap(ax, matrix)
    _layer_ticks(ax, layers)
    ax.set_xlabel("layer (0-based decoder block)")
    ax.set_ylabel("layer")
    if len(layers) <= _WRITE_VALUES_UP_TO:
        _write_values(ax, matrix)
    _colorbar(figure, ax)
    set_title(figure, title, note)
    return figure


def layers_sheet(
    title: str, note: str, matrices: FloatArray, behaviors: Sequence[str], layers: Sequence[int]
) -> Figure:
    """The same for all behaviors, [n_behaviors, n_layers, n_layers]."""
    figure, axes = _panels(len(behaviors))
    for ax, behavior, matrix in zip(axes, behaviors, matrices, strict=False):
        _heatmap(ax, matrix)
        _layer_ticks(ax, layers, most=6)
        ax.set_title(behavior_label(behavior), fontsize=7, pad=3)
    _finish_panels(figure, axes, len(behaviors), title, note, "axes: layer (0-based decoder block)", _gaps(matrices))
    return figure


def behaviors_sheet(
    title: str, note: str, matrices: FloatArray, behaviors: Sequence[str], layers: Sequence[int]
) -> Figure:
    """Similarity of the behaviors' vectors in each layer, [n_layers, n_behaviors, n_behaviors]."""
    n_panels = len(layers)
    n_rows, n_columns = panel_grid(n_panels)
    figure, axes = _panels(n_panels)
    labels = [behavior_label(behavior) for behavior in behaviors]
    places = range(len(behaviors))
    for index, (ax, layer, matrix) in enumerate(zip(axes, layers, matrices, strict=False)):
        _heatmap(ax, matrix)
        ax.set_title(f"layer {layer}", fontsize=6, pad=2)
        is_left, is_lowest = index % n_columns == 0, index // n_columns == n_rows - 1
        ax.set_yticks(places, labels if is_left else [""] * len(labels), fontsize=5)
        ax.set_xticks(places, labels if is_lowest else [""] * len(labels), fontsize=5, rotation=90)
        ax.tick_params(length=0)
        if n_columns <= 2 and n_rows <= 2:
            _write_values(ax, matrix)
    _finish_panels(figure, axes, n_panels, title, note, _gaps(matrices))
    return figure


def pairs_figure(title: str, note: str, cosines: FloatArray, behaviors: Sequence[str], layers: Sequence[int]) -> Figure:
    """Similarity of every two behaviors over the layers, from [n_layers, n_behaviors, n_behaviors]."""
    pairs = list(itertools.combinations(range(len(behaviors)), 2))
    rows = np.array([cosines[:, first, second] for first, second in pairs])  # [n_pairs, n_layers]
    labels = [" / ".join(behavior_label(behaviors[index]) for index in pair) for pair in pairs]
    figure, ax = new_figure(PAGE_WIDTH, 1.1 + 0.16 * len(pairs))
    _heatmap(ax, rows, square=False)
    ax.set_xticks(*_ticks(layers, 20))
    ax.set_yticks(range(len(pairs)), labels)
    ax.tick_params(length=0)
    ax.set_xlabel("layer (0-based decoder block)")
    if len(layers) <= 2 * _WRITE_VALUES_UP_TO:
        _write_values(ax, rows)
    _colorbar(figure, ax)
    set_title(figure, title, note, _gaps(rows))
    return figure


def _panels(n_panels: int) -> tuple[Figure, list[Axes]]:
    n_rows, n_columns = panel_grid(n_panels)
    width = COLUMN_WIDTH if n_panels == 1 else PAGE_WIDTH
    figure, axes = new_figure(
        width, 0.9 + n_rows * (width - 1.2) / n_columns * 1.12, nrows=n_rows, ncols=n_columns, squeeze=False
    )
    return figure, list(axes.flat)


def _finish_panels(figure: Figure, axes: list[Axes], n_panels: int, title: str, *notes: str) -> None:
    for ax in axes[n_panels:]:
        ax.set_axis_off()
    _colorbar(figure, axes)
    set_title(figure, title, *notes)


def _gaps(matrices: FloatArray) -> str:
    return "grey: no vector" if np.isnan(matrices).any() else ""


def _heatmap(ax: Axes, matrix: FloatArray, square: bool = True) -> None:
    colors = colormaps["RdBu_r"].with_extremes(bad=_GREY)
    ax.imshow(
        np.ma.masked_invalid(matrix),
        cmap=colors,
        vmin=-1,
        vmax=1,
        aspect="equal" if square else "auto",
        interpolation="nearest",
    )
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _colorbar(figure: Figure, axes: Axes | list[Axes]) -> None:
    """A colour bar for all panels; and no gaps where square panels leave room."""
    figure.set_layout_engine("compressed")
    first = axes[0] if isinstance(axes, list) else axes
    bar = figure.colorbar(first.images[0], ax=axes, shrink=min(0.8, 3.0 / figure.get_figheight()), aspect=25, pad=0.02)
    bar.set_label("cosine similarity")
    bar.outline.set_visible(False)


def _write_values(ax: Axes, matrix: FloatArray) -> None:
    for (row, column), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            color = "white" if abs(value) > 0.6 else "black"
            ax.text(column, row, f"{round(value, 2) + 0.0:.2f}", ha="center", va="center", color=color, fontsize=5)


def _layer_ticks(ax: Axes, layers: Sequence[int], most: int = _MAX_TICKS) -> None:
    positions, labels = _ticks(layers, most)
    ax.set_xticks(positions, labels)
    ax.set_yticks(positions, labels)
    ax.tick_params(length=0)


def _ticks(layers: Sequence[int], most: int) -> tuple[list[int], list[str]]:
    """Positions and labels of at most `most` evenly spaced layers, the first of them always."""
    step = next(step for step in (1, 2, 4, 5, 8, 10, 16, 20, 50, 100, len(layers)) if len(layers) <= step * most)
    positions = list(range(0, len(layers), step))
    return positions, [str(layers[position]) for position in positions]


# --- lines -----------------------------------------------------------------------------------------


def models_figure(
    title: str, note: str, cosines: FloatArray, behaviors: Sequence[str], layers: Sequence[int]
) -> Figure:
    """Similarity of two models' vectors over the layers, [n_behaviors, n_layers]."""
    figure, ax = new_figure(COLUMN_WIDTH, 3.0)
    _lines(ax, cosines, behaviors, layers)
    ax.axhline(0, color="#666666", linewidth=0.6)
    ax.set_ylim(min(0.0, float(np.nanmin(cosines))) - 0.03, 1.03)
    ax.set_ylabel("cosine similarity")
    legend_below(figure, ax)
    set_title(figure, title, note)
    return figure


def norms_figure(
    title: str, note: str, norms_of: Sequence[tuple[str, FloatArray]], behaviors: Sequence[str], layers: Sequence[int]
) -> Figure:
    """Norms over the layers, a panel for each (name, [n_behaviors, n_layers])."""
    figure, axes = new_figure(
        PAGE_WIDTH if len(norms_of) > 1 else COLUMN_WIDTH, 2.9, ncols=len(norms_of), sharey=True, squeeze=False
    )
    for ax, (name, norms) in zip(axes[0], norms_of, strict=True):
        _lines(ax, np.where(norms > 0, norms, np.nan), behaviors, layers)
        same = len(behaviors) > 1 and np.allclose(norms, norms[0], rtol=1e-3, atol=0)
        ax.set_title(f"{name}: the same for all behaviors" if same else name, loc="left", fontsize=7, pad=3)
    shown = np.concatenate([norms[norms > 0] for _, norms in norms_of])
    is_wide = shown.max() > 10 * shown.min()
    axes[0, 0].set_yscale("log" if is_wide else "linear")  # for all panels: they share the axis
    if is_wide:
        axes[0, 0].yaxis.set_major_formatter("{x:g}")  # the default writes powers as formulas
        axes[0, 0].yaxis.set_minor_formatter("")
    else:
        axes[0, 0].set_ylim(0, 1.05 * shown.max())
    axes[0, 0].set_ylabel(f"norm of the steering vector{' (log scale)' if is_wide else ''}")
    legend_below(figure, axes[0, 0])
    set_title(figure, title, note)
    return figure


def _lines(ax: Axes, values: FloatArray, behaviors: Sequence[str], layers: Sequence[int]) -> None:
    for behavior, row in zip(behaviors, values, strict=True):
        points = [Estimate(float(value), np.nan, np.nan, 1, 1) for value in row]
        draw_line(ax, layers, points, behavior_label(behavior), behavior_style(behavior))
    layer_axis(ax, layers)


# --- tables ----------------------------------------------------------------------------------------


def layers_table(matrices: FloatArray, behaviors: Sequence[str], layers: Sequence[int], note: str) -> Table:
    """A row for each behavior and layer, a column for each layer."""
    columns = ("behavior", "layer", *(f"layer_{layer}" for layer in layers))
    rows = [
        (behavior, layer, *row.tolist())
        for behavior, matrix in zip(behaviors, matrices, strict=True)
        for layer, row in zip(layers, matrix, strict=True)
    ]
    return Table(columns, rows, (note, _NOT_THERE))


def behaviors_table(matrices: FloatArray, behaviors: Sequence[str], layers: Sequence[int], note: str) -> Table:
    """A row for each layer and behavior, a column for each behavior."""
    rows = [
        (layer, behavior, *row.tolist())
        for layer, matrix in zip(layers, matrices, strict=True)
        for behavior, row in zip(behaviors, matrix, strict=True)
    ]
    return Table(("layer", "behavior", *behaviors), rows, (note, _NOT_THERE))


def pairs_table(cosines: FloatArray, behaviors: Sequence[str], layers: Sequence[int], note: str) -> Table:
    """A row for each two behaviors, a column for each layer."""
    rows = [
        (behaviors[first], behaviors[second], *cosines[:, first, second].tolist())
        for first, second in itertools.combinations(range(len(behaviors)), 2)
    ]
    return Table(("behavior", "other_behavior", *(f"layer_{layer}" for layer in layers)), rows, (note, _NOT_THERE))


def per_layer_table(values: FloatArray, behaviors: Sequence[str], layers: Sequence[int], note: str) -> Table:
    """A row for each layer, a column for each behavior; from [n_behaviors, n_layers]."""
    rows = [(layer, *column.tolist()) for layer, column in zip(layers, values.T, strict=True)]
    return Table(("layer", *behaviors), rows, (note, _NOT_THERE))


def norms_table(
    norms_of: Sequence[tuple[str, FloatArray]], behaviors: Sequence[str], layers: Sequence[int], note: str
) -> Table:
    """A row for each behavior and layer, a column for each (name, [n_behaviors, n_layers])."""
    rows = [
        (behavior, layer, *(float(norms[row, column]) for _, norms in norms_of))
        for row, behavior in enumerate(behaviors)
        for column, layer in enumerate(layers)
    ]
    columns = ("norm_" + name.replace(" ", "_") for name, _ in norms_of)
    return Table(("behavior", "layer", *columns), rows, (note, _NOT_THERE))
