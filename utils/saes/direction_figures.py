"""Heatmaps of candidate directions: bypass, induce and KL over layers and positions, a random direction below."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from utils.evaluation.metrics import mean_estimates
from utils.figures.style import PAGE_WIDTH, figure_style, log_written, new_figure, save_figure, set_title
from utils.files.tables import Table
from utils.saes.direction_request import DirectionRequest
from utils.saes.selection import CandidateValues, Evaluator, SelectionRule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FloatArray = NDArray[np.float64]
_PANELS = (
    ("bypass", "refusal_score", "harmful prompts, direction ablated: refusal metric"),
    ("induce", "steering_score", "harmless prompts, direction added: refusal metric"),
    ("kl", "kl_div_score", "harmless prompts, direction ablated: KL to unedited (nats)"),
)
CONTROL = "random"


def plot_candidates(
    request: DirectionRequest,
    positions: Sequence[int],
    ends: Sequence[str],
    values: Sequence[Sequence[CandidateValues]],
    control: Sequence[CandidateValues],
    evaluator: Evaluator,
    rule: SelectionRule,
) -> None:
    """Three heatmaps in one figure, with every score and its interval in the text beside it."""
    grid = [*values, control]
    labels = [f"{position} {ends[position]!r}" for position in positions] + [CONTROL]
    kept = [
        [rule.keeps(one.scores(position, layer)) for layer, one in zip(request.layers, row, strict=True)]
        for position, row in zip(positions, values, strict=True)
    ]
    before = (float(evaluator.harmful_before.mean()), float(evaluator.harmless_before.mean()), 0.0)
    with figure_style():
        figure = _draw(request, labels, grid, kept, before)
        table = _table(request, [*map(str, positions), CONTROL], grid, kept, before)
        log_written(save_figure(figure, request.folder / "direction_evaluations", table))


def _draw(
    request: DirectionRequest,
    labels: Sequence[str],
    grid: Sequence[Sequence[CandidateValues]],
    kept: Sequence[Sequence[bool]],
    before: Sequence[float],
) -> "Figure":
    figure, axes = new_figure(PAGE_WIDTH, 1.2 + 3 * (0.35 + 0.2 * len(labels)), nrows=3)
    best = _best(grid, kept)
    for ax, (name, _, what), unedited in zip(axes, _PANELS, before, strict=True):
        means = np.array([[float(getattr(one, name).mean()) for one in row] for row in grid])
        image = _heatmap(ax, means, name, unedited)
        for row, of_row in enumerate(kept):
            for column, is_kept in enumerate(of_row):
                if is_kept:
                    ax.plot(column, row, marker="*" if (row, column) == best else ".", color="black", markersize=5)
        ax.axhline(len(labels) - 1.5, color="white", linewidth=2)
        ax.set_yticks(range(len(labels)), labels)
        ax.set_xticks(range(len(request.layers)), [str(layer) for layer in request.layers])
        ax.grid(visible=False)
        ax.set_title(what + ("" if name == "kl" else f"; unedited {unedited:+.2f}"), loc="left", fontsize=7)
        figure.colorbar(image, ax=ax, pad=0.01, format="{x:g}")  # the style leaves mathematical text alone
    axes[-1].set_xlabel("layer (output of decoder block, from 0)")
    set_title(
        figure,
        f"{request.model.name}: candidate directions by position and layer, {request.ablation} ablation",
        f"dots: KL at most {request.max_kl:g}, induce 0 or more, not in the last fifth of the layers; star: chosen; "
        "last row: a random direction of the norm of the last position's",
    )
    return figure


def _heatmap(ax: Any, means: FloatArray, name: str, unedited: float) -> Any:
    """Diverging around the unedited value for metrics; for KL from 0, on a scale of logarithms."""
    import matplotlib as mpl

    if name == "kl":
        floor = max(float(means[means > 0].min(initial=1e-3)), 1e-3)
        norm: Any = mpl.colors.LogNorm(floor, max(float(means.max()), 2 * floor))
        return ax.imshow(np.clip(means, floor, None), aspect="auto", cmap="viridis", norm=norm)
    furthest = max(float(np.abs(means - unedited).max()), 1e-6)
    norm = mpl.colors.Normalize(unedited - furthest, unedited + furthest)
    return ax.imshow(means, aspect="auto", cmap="RdBu_r", norm=norm)


def _best(grid: Sequence[Sequence[CandidateValues]], kept: Sequence[Sequence[bool]]) -> tuple[int, int] | None:
    places = [(row, column) for row, of_row in enumerate(kept) for column, is_kept in enumerate(of_row) if is_kept]
    return min(places, key=lambda place: float(grid[place[0]][place[1]].bypass.mean()), default=None)


def _table(
    request: DirectionRequest,
    positions: Sequence[str],
    grid: Sequence[Sequence[CandidateValues]],
    kept: Sequence[Sequence[bool]],
    before: Sequence[float],
) -> Table:
    flat = [one for row in grid for one in row]
    columns = ["position", "suite_layer", "layer", "kept"]
    estimates = []
    for name, key, _ in _PANELS:
        columns += [key, f"{key}_low", f"{key}_high"]
        estimates.append(mean_estimates(np.stack([getattr(one, name) for one in flat]), request.seed))
    rows: list[list[Any]] = []
    for row, position in enumerate(positions):
        for column, layer in enumerate(request.layers):
            place = row * len(request.layers) + column
            cells: list[Any] = [position, layer, layer + 1, row < len(kept) and kept[row][column]]
            for of_panel in estimates:
                cells += [of_panel[place].value, of_panel[place].low, of_panel[place].high]
            rows.append(cells)
    return Table(
        tuple(columns),
        rows,
        (
            "layer: the block that reads the place (Arditi et al.); suite_layer: the block whose output it is",
            f"refusal_score: bypass, unedited {before[0]:.3f}; steering_score: induce, unedited {before[1]:.3f}; "
            "means over validation prompts with 95% bootstrap intervals",
        ),
    )
