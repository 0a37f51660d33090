"""Which vectors lie near each other: hierarchical clustering by cosine, with average linkage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.cluster import hierarchy
from scipy.spatial.distance import pdist, squareform

from utils.errors import UserError
from utils.figures.style import PAGE_WIDTH, new_figure, set_title
from utils.files.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

FEWEST = 3
_WRITE_VALUES_UP_TO = 14
_GREY = "#777777"


@dataclass(frozen=True, eq=False)
class Clusters:
    """A tree over vectors."""

    cosines: FloatArray
    """[n, n], in the vectors' own order."""
    merges: FloatArray
    """scipy's linkage matrix, [n - 1, 4]; a height is 1 - the mean cosine between two clusters."""
    order: IntArray
    """[n]: the leaves from top to bottom."""
    cophenetic: float
    """Correlation of the heights at which two vectors meet with their distances; 1 where the tree says all."""
    random_heights: tuple[float, float]
    """Between which 95% of all merges of as many random vectors are."""


def cluster(vectors: FloatArray, seed: int = 0) -> Clusters:
    """Cluster vectors [n, d] by 1 - cosine, average linkage.

    Raises:
        UserError: If there are fewer than three, or one is all zeros.
    """
    if len(vectors) < FEWEST:
        raise UserError(f"{len(vectors)} vectors are too few for a tree; it takes {FEWEST}")
    if not (np.linalg.norm(vectors, axis=1) > 0).all():
        raise UserError("a vector of zeros has no direction, so it cannot be clustered; make it again")
    distances = np.maximum(pdist(vectors, "cosine"), 0.0)
    merges = hierarchy.linkage(distances, "average", optimal_ordering=True)
    cophenetic = float(hierarchy.cophenet(merges, distances)[0])
    return Clusters(
        1 - squareform(distances),
        merges,
        hierarchy.leaves_list(merges),
        cophenetic,
        _random_heights(vectors.shape, seed),
    )


def _random_heights(shape: tuple[int, ...], seed: int, n_draws: int = 20) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    heights = [hierarchy.linkage(rng.standard_normal(shape), "average", "cosine")[:, 2] for _ in range(n_draws)]
    low, high = np.quantile(np.concatenate(heights), [0.025, 0.975])
    return float(low), float(high)


def clusters_table(clusters: Clusters, names: Sequence[str], title: str) -> Table:
    """The merges from the nearest on, and below them the cosines of every two."""
    n = len(names)
    members = [[name] for name in names]
    rows: list[tuple[object, ...]] = []
    for first, second, height, _ in clusters.merges:
        joined = members[int(first)] + members[int(second)]
        rows.append(("merge", ", ".join(members[int(first)]), ", ".join(members[int(second)]), 1 - float(height)))
        members.append(joined)
    rows += [("cosine", names[i], names[j], float(clusters.cosines[i, j])) for i in range(n) for j in range(i)]
    low, high = clusters.random_heights
    notes = (
        title,
        "merge: mean cosine between the two clusters that meet; cosine: between two vectors",
        f"cophenetic correlation {clusters.cophenetic:.3f}; 95% of the merges of as many random vectors have a mean "
        f"cosine between {1 - high:.3f} and {1 - low:.3f}",
    )
    return Table(("what", "first", "second", "cosine"), rows, notes)


def clusters_figure(clusters: Clusters, names: Sequence[str], title: str, note: str = "") -> "Figure":
    """The tree beside the heatmap of cosines, whose rows are in the tree's order."""
    n = len(names)
    figure, (tree, heat) = new_figure(PAGE_WIDTH, 1.4 + 0.17 * n, ncols=2, gridspec_kw={"width_ratios": [1, 1.6]})
    _draw_tree(tree, clusters, names)
    ordered = clusters.cosines[np.ix_(clusters.order, clusters.order)]
    image = heat.imshow(ordered, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    if n <= _WRITE_VALUES_UP_TO:
        for (row, column), value in np.ndenumerate(ordered):
            colour = "white" if abs(value) > 0.6 else "black"
            heat.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=4.5, color=colour)
    shown = [names[i] for i in clusters.order]
    heat.set_yticks(range(n), shown, fontsize=5)
    heat.set_xticks(range(n), shown, rotation=90, fontsize=5)
    heat.grid(visible=False)
    figure.colorbar(image, ax=heat, label="cosine similarity", shrink=0.8)
    set_title(
        figure,
        title,
        f"average linkage; cophenetic correlation {clusters.cophenetic:.2f}; grey: 95% of the merges of random vectors",
        note,
    )
    return figure


def _draw_tree(ax: "Axes", clusters: Clusters, names: Sequence[str]) -> None:
    """Leaves at the heights of the heatmap's rows; the root on the left."""
    place: dict[int, tuple[float, float]] = {int(leaf): (0.0, float(row)) for row, leaf in enumerate(clusters.order)}
    for index, (first, second, height, _) in enumerate(clusters.merges):
        (x1, y1), (x2, y2) = place[int(first)], place[int(second)]
        ax.plot([x1, height, height, x2], [y1, y1, y2, y2], color="black", linewidth=0.8)
        place[len(names) + index] = (float(height), (y1 + y2) / 2)
    ax.axvspan(*clusters.random_heights, color=_GREY, alpha=0.3, linewidth=0)
    ax.set_xlim(max(1.1, 1.05 * float(clusters.merges[:, 2].max())), -0.02)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_yticks([])
    ax.grid(visible=False, axis="y")
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("1 \N{MINUS SIGN} mean cosine where two clusters meet")
