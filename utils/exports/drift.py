"""How projections move over the turns of conversations: a figure beside what neutral answers do."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.evaluation.words import behavior_label
from utils.exports.monitor_request import VectorSource
from utils.exports.reference import BAND, Reference
from utils.exports.summary import Summary
from utils.figures.lines import hide_beyond
from utils.figures.style import BLUE, PAGE_WIDTH, figure_style, new_figure, save_figure, set_title
from utils.files.tables import Table

_COLUMNS = ("behavior", "layer", "assistant_turn", "n", "projection", "ci_low", "ci_high", "neutral_5", "neutral_95")
_MOST_COLUMNS = 3


def plot_drift(
    summary: Summary, sources: Sequence[VectorSource], reference: Reference, stem: Path, name: str
) -> list[Path]:
    """Mean projection of the assistant's first turn, second turn, ..., a panel a vector.

    Args:
        summary: Of conversations.
        sources: The vectors.
        reference: Neutral answers: the control.
        stem: Where the files go.
        name: Of the file of texts.
    """
    n_columns = min(_MOST_COLUMNS, len(sources))
    n_rows = -(-len(sources) // n_columns)
    with figure_style():
        figure, axes = new_figure(PAGE_WIDTH, 0.7 + 1.9 * n_rows, nrows=n_rows, ncols=n_columns, squeeze=False)
        for probe, (ax, source) in enumerate(zip(axes.flat, sources, strict=False)):
            low, high = (reference.texts[probe].quantile(share) for share in BAND)
            ax.axhspan(low, high, color="#999999", alpha=0.2, linewidth=0, label="neutral answers, 5% to 95%")
            for place, path in enumerate(summary.paths):
                label = "single conversations" if place == 0 else None
                ax.plot(range(1, len(path) + 1), path[:, probe], color=BLUE, linewidth=0.4, alpha=0.35, label=label)
            xs, means, lows, highs = _means(summary, probe)
            ax.plot(xs, means, color=BLUE, marker="o", markersize=3, label="mean, 95% interval")
            ax.errorbar(xs, means, [means - lows, highs - means], fmt="none", ecolor=BLUE, elinewidth=0.8, capsize=2)
            ax.set_title(f"{behavior_label(source.behavior)}, layer {source.layer}")
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.set_xlabel("turn of the assistant")
            ax.set_ylabel("mean projection")
        hide_beyond(axes, len(sources))
        figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        notes = f"{summary.slopes.n} conversations of two or more turns; neutral: {reference.n_texts} answers"
        set_title(figure, f"Drift over the turns: {name}", notes)
        return save_figure(figure, stem, _table(summary, sources, reference, notes))


def _means(summary: Summary, probe: int) -> "tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]":
    """Turns, means and intervals; where there is one value alone, no interval."""
    means = np.array([float(turn.mean[probe]) for turn in summary.turns])
    halves = np.array([float(turn.half_width()[probe]) for turn in summary.turns])
    return np.arange(1, len(means) + 1), means, means - halves, means + halves


def _table(summary: Summary, sources: Sequence[VectorSource], reference: Reference, notes: str) -> Table:
    rows = []
    for probe, source in enumerate(sources):
        band = [reference.texts[probe].quantile(share) for share in BAND]
        _, means, lows, highs = _means(summary, probe)
        for place, turn in enumerate(summary.turns):
            values = [float(means[place]), float(lows[place]), float(highs[place])]
            rows.append([source.behavior, source.layer, place + 1, turn.n, *values, *band])
    return Table(_COLUMNS, rows, (notes, "projection: on the vector scaled to length 1, mean over a turn's tokens"))
