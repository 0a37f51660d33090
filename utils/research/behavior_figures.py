"""The figures of behavior_geometry.py: the statistics beside their controls, the knobs' effects, and the grids."""

from typing import TYPE_CHECKING, Any

import numpy as np

from utils.behaviors import load_behavior
from utils.figures.style import (
    BLUE,
    GREEN,
    ORANGE,
    PAGE_WIDTH,
    figure_style,
    log_written,
    new_figure,
    save_figure,
    set_title,
)
from utils.files.tables import Table
from utils.research.behavior_request import BehaviorsRequest, BehaviorTree
from utils.research.behavior_statistics import CONTROLS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from utils.research.behavior_run import Found

_SHOWN = {
    "nested": "cos(child \N{MINUS SIGN} parent, parent)",
    "share": "share of the parent of the others",
    "members": "held-out pairs on own vector",
    "outsiders": "other parents' pairs on it",
    "nearest": "held-out pairs at own corner",
}


def plot_behaviors(found: "Found", tree: BehaviorTree, request: BehaviorsRequest) -> None:
    """Draw and save every figure with its data."""
    with figure_style():
        for name, draw in (("hierarchy", _draw_statistics), ("knobs", _draw_knobs), ("grids", _draw_grids)):
            figure, table = draw(found, tree, request)
            log_written(save_figure(figure, request.stem(name), table))


def _draw_statistics(found: "Found", tree: BehaviorTree, request: BehaviorsRequest) -> "tuple[Figure, Table]":
    figure, ax = new_figure(PAGE_WIDTH, 2.6)
    places = np.arange(len(_SHOWN))
    for shift, control, colour in zip((-0.2, 0.0, 0.2), CONTROLS, ("#888888", ORANGE, GREEN), strict=True):
        ranges = [found.statistics[name].controls[control] for name in _SHOWN]
        low, high = [one.low for one in ranges], [one.high for one in ranges]
        ax.hlines(places + shift, low, high, color=colour, linewidth=4, alpha=0.6, label=control)
        ax.plot([one.value for one in ranges], places + shift, "|", color="black", markersize=5)
    ax.plot([found.statistics[name].value for name in _SHOWN], places, "D", color=BLUE, label="the hierarchy")
    ax.axvline(0, color="0.6", linewidth=0.6)
    ax.set_yticks(places, list(_SHOWN.values()))
    ax.set_ylim(len(_SHOWN) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=4)
    set_title(
        figure,
        f"{tree.label}, {request.choice.label}, layer {request.layer}, {request.inner_product} inner product",
        "means over behaviors; bars: 95% of the draws of each control",
    )
    rows: list[tuple[Any, ...]] = []
    for name, one in found.statistics.items():
        rows.append((name, "the hierarchy", one.value, "-", "-"))
        rows += [(name, control, e.value, e.low, e.high) for control, e in one.controls.items()]
    return figure, Table(("statistic", "rows", "value", "low", "high"), rows, ("low, high: 95% of the draws",))


def _draw_knobs(found: "Found", tree: BehaviorTree, request: BehaviorsRequest) -> "tuple[Figure, Table]":
    behaviors = list(tree.signs)
    labels = [_sense(tree, behavior, request) for behavior in behaviors]
    parent_of = {behavior: parent for parent, children in tree.parents.items() for behavior in children}
    knobs = [f"{k} \N{MINUS SIGN} {parent_of[k]}" if k in parent_of else k for k in found.effects]
    figure, ax = new_figure(PAGE_WIDTH, 1.4 + 0.26 * len(knobs))
    matrix = np.array([[row[behavior].value for behavior in behaviors] for row in found.effects.values()])
    _heatmap(figure, ax, matrix, "preference, + minus \N{MINUS SIGN} (nats per token)")
    for place, row in enumerate(found.effects.values()):
        for column, behavior in enumerate(behaviors):
            e = row[behavior]
            star = "*" if e.low > 0 or e.high < 0 else ""
            text = f"{e.value:+.2f}{star}\n[{e.low:+.2f}, {e.high:+.2f}]"
            ax.text(column, place, text, ha="center", va="center", fontsize=4.5)
    ax.set_yticks(range(len(knobs)), knobs)
    ax.set_xticks(range(len(behaviors)), labels, rotation=20, ha="right")
    n = next(iter(next(iter(found.effects.values())).values())).n
    set_title(
        figure,
        f"What each knob does to each behavior, {request.choice.label}, layer {request.layer}",
        f"{n} held-out items each, strength {request.strength:g}; in brackets 95% intervals, * where 0 is outside",
    )
    rows = [
        (knob, behavior, e.value, e.low, e.high, e.n)
        for knob, row in zip(knobs, found.effects.values(), strict=True)
        for behavior, e in row.items()
    ]
    notes = ("preference for the matching answer's text at +strength minus at -strength, times the behavior's sign",)
    return figure, Table(("knob", "behavior", "effect", "low", "high", "n"), rows, notes)


def _sense(tree: BehaviorTree, behavior: str, request: BehaviorsRequest) -> str:
    """A behavior's label, with a word where its opposite is meant."""
    label = load_behavior(request.paths, behavior).label
    return label if tree.signs[behavior] > 0 else f"less {label}"


def _draw_grids(found: "Found", tree: BehaviorTree, request: BehaviorsRequest) -> "tuple[Figure, Table]":
    n = len(found.grids)
    figure, axes = new_figure(PAGE_WIDTH, 2.1, ncols=n, squeeze=False)
    largest = max(abs(e.value) for grid in found.grids.values() for e in grid.values()) or 1.0
    rows: list[tuple[Any, ...]] = []
    for ax, (behavior, grid) in zip(axes[0], found.grids.items(), strict=True):
        steps = sorted({a for a, _ in grid})
        matrix = np.array([[grid[a, b].value for a in steps] for b in reversed(steps)])
        ax.imshow(matrix, cmap="RdBu_r", vmin=-largest, vmax=largest)
        for (a, b), e in grid.items():
            star = "*" if e.low > 0 or e.high < 0 else ""
            colour = "white" if abs(e.value) > 0.7 * largest else "black"
            ax.text(
                steps.index(a),
                len(steps) - 1 - steps.index(b),
                f"{e.value:+.2f}{star}",
                ha="center",
                va="center",
                fontsize=5,
                color=colour,
            )
            rows.append((behavior, a, b, e.value, e.low, e.high, e.n))
        ax.set_xticks(range(len(steps)), [_signed(step) for step in steps])
        ax.set_yticks(range(len(steps)), [_signed(step) for step in reversed(steps)])
        ax.set_title(_sense(tree, behavior, request), fontsize=6)
        ax.set_xlabel("parent", fontsize=6)
        ax.grid(visible=False)
    axes[0, 0].set_ylabel("child \N{MINUS SIGN} parent", fontsize=6)
    set_title(
        figure,
        f"Both knobs together, each on its own behavior's held-out items, {request.choice.label}",
        f"change of preference (nats per token); steps of strength {request.strength:g}; * 0 outside the interval",
    )
    columns = ("behavior", "parent_steps", "own_steps", "change", "low", "high", "n")
    return figure, Table(columns, rows, ("change of preference from no steering, times the behavior's sign",))


def _signed(step: int) -> str:
    return f"{step:+d}" if step else "0"


def _heatmap(figure: "Figure", ax: "Axes", matrix: "np.ndarray[Any, Any]", label: str) -> None:
    limit = float(np.abs(matrix).max()) or 1.0
    image = ax.imshow(matrix, cmap="RdBu_r", vmin=-1.3 * limit, vmax=1.3 * limit, aspect="auto")
    ax.grid(visible=False)
    figure.colorbar(image, ax=ax, label=label, shrink=0.8)
