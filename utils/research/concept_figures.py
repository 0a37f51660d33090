"""The figures of concept_geometry.py: cosines with the tree beside, 2-D projections, interventions, the hierarchy."""

from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.data.estimates import Estimate
from utils.figures.style import (
    BLUE,
    GREEN,
    ORANGE,
    PAGE_WIDTH,
    PURPLE,
    SKY,
    VERMILLION,
    figure_style,
    log_written,
    new_figure,
    save_figure,
    set_title,
)
from utils.files.tables import Table
from utils.research.concept_request import GeometryRequest
from utils.research.concept_space import FloatArray
from utils.research.concept_statistics import Vectors
from utils.research.concept_summary import Measured, per_child_rows, summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_GREY = "#999999"
_COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY)


def plot_geometry(measured: Measured, request: GeometryRequest) -> None:
    """Draw and save every figure with its data."""
    with figure_style():
        for name, draw in (
            ("hierarchy", _draw_hierarchy),
            ("cosines", _draw_cosines),
            ("projections", _draw_projections),
            ("interventions", _draw_interventions),
        ):
            figure, table = draw(measured, request)
            log_written(save_figure(figure, request.stem(name), table))


# --- the hierarchy, category by category -----------------------------------------------------------


def _draw_hierarchy(measured: Measured, request: GeometryRequest) -> "tuple[Figure, Table]":
    rows = per_child_rows(measured)
    figure, axes = new_figure(PAGE_WIDTH, 1.1 + 0.17 * len(rows), ncols=2, sharey=True)
    columns = {name: place for place, name in enumerate(_CHILD_COLUMNS)}

    def values(name: str) -> list[float]:
        return [row[columns[name]] for row in rows]

    places = np.arange(len(rows))
    panels = (
        ("nested", "child among the parent's words", (("random parent", "random_parent", ORANGE),)),
        ("share", "parent of its other children only", ()),
    )
    for ax, (name, title, others) in zip(axes, panels, strict=True):
        for label, control, colour in (("random tokens", f"{name}_shuffled", _GREY), *others):
            low, high = (values(f"{control}_{end}") for end in ("low", "high"))
            ax.hlines(places, low, high, color=colour, linewidth=4, alpha=0.5, label=f"{label} (95% of draws)")
        if name == "nested":
            ax.plot(values("other_parent"), places, "s", color=VERMILLION, label="another parent of the list")
        ax.plot(values(name), places, "D", color=BLUE, label="the words")
        ax.axvline(0 if name == "nested" else 1, color="0.6", linewidth=0.6)
        ax.set_title(title, fontsize=7, loc="left")
        ax.set_xlabel(_X_LABELS[name])
        ax.grid(visible=False, axis="y")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -1.9 / len(rows)), ncols=1)
    axes[0].set_yticks(places, [f"{row[1]} ({row[0]})" for row in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    set_title(figure, f"Is a child its parent and something orthogonal? {request.choice.label}, {measured.label}")
    return figure, Table(_CHILD_COLUMNS, rows, _HIERARCHY_NOTES)


_X_LABELS = {
    "nested": "cos(child \N{MINUS SIGN} parent, parent): 0 if orthogonal",
    "share": "share of the parent's vector in the child's: 1 if whole",
}
_CHILD_COLUMNS = (
    *("parent", "child", "words", "left_out", "tokens"),
    *("nested", "nested_shuffled", "nested_shuffled_low", "nested_shuffled_high"),
    *("random_parent", "random_parent_low", "random_parent_high", "other_parent"),
    *("apart", "apart_shuffled", "apart_shuffled_low", "apart_shuffled_high"),
    *("share", "share_shuffled", "share_shuffled_low", "share_shuffled_high"),
    *("norm", "norm_shuffled", "members", "outsiders"),
)
_HIERARCHY_NOTES = (
    "nested: cos(l_child - l_parent, l_parent), the child's words among the parent's; apart: the parent of its other "
    "children's words; share: l_child.l / |l|^2 with that parent's l",
    "shuffled: random tokens in the place of the words, the same sets; random_parent: such for the parent only; "
    "each the mean and 95% of the draws",
    "members, outsiders: projection of held-out words, and of other parents' words, on the vector of 70% of the words, "
    "over its squared length",
)


# --- cosines with the tree ---------------------------------------------------------------------


def _draw_cosines(measured: Measured, request: GeometryRequest) -> "tuple[Figure, Table]":
    layout = measured.layout
    vectors = Vectors(measured.x, layout, np.ones(len(measured.x), dtype=bool))
    order = [(parent, layout.siblings(parent)) for parent in range(len(layout.parents))]
    names = list(chain.from_iterable([layout.parents[p], *(layout.children[c] for c in cs)] for p, cs in order))
    whole = np.concatenate([[vectors.parents[p], *vectors.children[cs]] for p, cs in order])
    apart = np.concatenate([[vectors.parents[p], *(vectors.children[cs] - vectors.parents[p])] for p, cs in order])
    figure, axes = new_figure(
        PAGE_WIDTH, 1.0 + 0.125 * len(names) + 0.6, ncols=3, gridspec_kw={"width_ratios": [0.35, 1, 1]}
    )
    _draw_tree(axes[0], [len(children) for _, children in order], names)
    matrices = [_cosine_matrix(whole), _cosine_matrix(apart)]
    for ax, matrix, title in zip(
        axes[1:], matrices, ("vectors", "parents, and child \N{MINUS SIGN} parent"), strict=True
    ):
        image = ax.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
        ax.set_title(title, fontsize=7, loc="left")
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=5)
        ax.set_yticks([])
        ax.grid(visible=False)
    figure.colorbar(image, ax=axes[1:], label="cosine (causal inner product)", shrink=0.6, aspect=25)
    set_title(figure, f"Cosines between concept vectors, {request.choice.label}, {measured.label}")
    rows = [
        (names[i], names[j], float(matrices[0][i, j]), float(matrices[1][i, j]))
        for i in range(len(names))
        for j in range(i)
    ]
    return figure, Table(("first", "second", "vectors", "differences"), rows, (_COSINE_NOTE,))


_COSINE_NOTE = "differences: of a child's vector minus its parent's, beside the parents' own vectors"


def _draw_tree(ax: "Axes", sizes: list[int], names: list[str]) -> None:
    """The hierarchy as lines, each name at the height of its row of the heatmap."""
    top = 0
    root = []
    for size in sizes:
        root.append(top)
        last = top + size
        ax.plot([0.2, 0.2], [top, last], color="0.5", linewidth=0.7)
        for row in range(top + 1, last + 1):
            ax.plot([0.2, 0.35], [row, row], color="0.5", linewidth=0.7)
            ax.text(0.38, row, names[row], va="center", fontsize=5.5)
        ax.plot([0.0, 0.2], [top, top], color="0.5", linewidth=0.7)
        ax.text(0.24, top, names[top], va="center", fontsize=6, weight="bold")
        top = last + 1
    ax.plot([0.0, 0.0], [root[0], root[-1]], color="0.5", linewidth=0.7)
    ax.set_xlim(-0.02, 1)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_axis_off()


def _cosine_matrix(vectors: FloatArray) -> FloatArray:
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.clip(units @ units.T, -1, 1)


# --- projections -----------------------------------------------------------------------------------


def _draw_projections(measured: Measured, request: GeometryRequest) -> "tuple[Figure, Table]":
    layout = measured.layout
    training = Vectors(measured.x, layout, layout.is_training)
    n = len(layout.parents)
    figure, axes = new_figure(PAGE_WIDTH, 3.7, nrows=2, ncols=n, squeeze=False)
    rows: list[tuple[Any, ...]] = []
    for parent, (above, below) in enumerate(zip(*axes, strict=True)):
        siblings = layout.siblings(parent)
        child = siblings[0]
        vertical = training.children[child] - training.parents[parent]
        rows += _scatter(above, measured, _frame(training.parents[parent], vertical), parent, [child])
        above.set_title(f"{layout.parents[parent]}: {layout.children[child]}", fontsize=6.5)
        above.set_xlabel("parent", fontsize=6)
        corners = training.children[siblings[:3]]
        flat = _frame(*(corner - corners[0] for corner in corners[1:])) if len(corners) > 2 else None
        if flat is None:
            below.set_axis_off()
            continue
        rows += _scatter(below, measured, flat, parent, siblings[:3])
        outline = np.concatenate([corners, corners[:1]]) @ flat.T
        below.plot(*outline.T, color="black", linewidth=0.8)
        below.set_title(", ".join(layout.children[one] for one in siblings[:3]), fontsize=6)
    axes[0, 0].set_ylabel("child \N{MINUS SIGN} parent", fontsize=6)
    axes[1, 0].set_ylabel("plane of three corners", fontsize=6)
    set_title(
        figure,
        f"Held-out words in planes made of other words, {request.choice.label}, {measured.label}",
        "light grey: random tokens; dark grey: other words of the parent; blue, red, green: of the children "
        "in the title, in its order; triangles: their vectors",
    )
    return figure, Table(("parent", "plane", "child", "x", "y"), rows, ("held-out words' tokens",))


def _frame(first: FloatArray, second: FloatArray) -> FloatArray:
    """Two orthonormal rows: along the first vector, and along what the second adds to it; [2, d]."""
    one = first / np.linalg.norm(first)
    rest = second - (second @ one) * one
    return np.stack([one, rest / np.linalg.norm(rest)])


def _scatter(ax: "Axes", measured: Measured, frame: FloatArray, parent: int, shown: list[int]) -> list[tuple[Any, ...]]:
    layout = measured.layout
    ax.plot(*(measured.background @ frame.T).T, ".", color="#dddddd", markersize=1, rasterized=True)
    held_out = ~layout.is_training
    plane = "parent and child" if len(shown) == 1 else "three children"
    rows: list[tuple[Any, ...]] = []
    rest = layout.of_parent(parent) & held_out & ~np.isin(layout.child_of_row, shown)
    groups = [(rest, "#777777", "others")]
    groups += [
        (layout.of_child(child) & held_out, colour, layout.children[child])
        for child, colour in zip(shown, _COLOURS, strict=False)
    ]
    for inside, colour, name in groups:
        points = measured.x[inside] @ frame.T
        ax.plot(*points.T, ".", color=colour, markersize=2.5)
        rows += [(layout.parents[parent], plane, name, float(x), float(y)) for x, y in points]
    ax.tick_params(labelsize=5)
    return rows


# --- interventions ---------------------------------------------------------------------------------


def _draw_interventions(measured: Measured, request: GeometryRequest) -> "tuple[Figure, Table]":
    found = summarise(measured, request.seed)
    figure, axes = new_figure(PAGE_WIDTH, 2.6, ncols=2, sharey=True)
    for ax, words in zip(axes, ("held_out", "all_words"), strict=True):
        bars: list[tuple[str, tuple[Estimate, Estimate]]] = []
        for kind, other in (("parent", "child"), ("child", "parent")):
            name = f"{kind}_step_{words}"
            bars.append((f"{kind} step,\n{kind} gap", (found[f"{name}_own"], found[f"{name}_own_shuffled"])))
            bars.append((f"{kind} step,\n|{other} gap|", (found[f"{name}_other"], found[f"{name}_other_shuffled"])))
        for shift, colour, label, which in ((-0.2, BLUE, "the words", 0), (0.2, _GREY, "random tokens", 1)):
            estimates = [both[which] for _, both in bars]
            spread = [[e.value - e.low for e in estimates], [e.high - e.value for e in estimates]]
            x = np.arange(len(bars)) + shift
            ax.bar(x, [e.value for e in estimates], 0.38, color=colour, label=label)
            ax.errorbar(
                x, [e.value for e in estimates], yerr=np.maximum(spread, 0), fmt="none", color="black", capsize=2
            )
        ax.axhline(0, color="0.6", linewidth=0.6)
        ax.set_xticks(range(len(bars)), [name for name, _ in bars])
        ax.set_title("read at held-out words" if words == "held_out" else "made of and read at all words", fontsize=7)
        ax.grid(visible=False, axis="x")
    axes[0].set_ylabel("change of the logit gap\nfor a step of length 1")
    axes[0].legend(loc="upper right")
    set_title(
        figure,
        f"What a step between parents or siblings moves, {request.choice.label}, {measured.label}",
        "bars: means over pairs of categories, with 95% intervals; random tokens: 95% of the draws",
    )
    rows = [
        (gap.kind, "held-out" if gap.held_out else "all", gap.source, gap.target, gap.own, gap.own_std, gap.other)
        for gap in measured.real.gaps
    ]
    columns = ("step", "words", "source", "target", "gap", "gap_std_over_pairs", "mean_abs_other_gap")
    return figure, Table(columns, rows, ("gap: change of mean logit of the target's words minus the source's",))
