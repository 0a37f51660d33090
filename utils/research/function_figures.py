"""The figures of function_vectors.py: a task's accuracy and cosines by layer, its heads, and all tasks together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.figures.style import (
    BLUE,
    GREEN,
    ORANGE,
    PAGE_WIDTH,
    VERMILLION,
    figure_style,
    log_written,
    new_figure,
    save_figure,
    set_title,
)
from utils.files.tables import Table
from utils.research.function_request import FunctionRequest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from utils.research.function_measures import TaskResult

_GREY = "#888888"
_COLOURS = {"function vector": BLUE, "right - shuffled": ORANGE, "right - none": VERMILLION, "random heads": _GREY}


def plot_task(result: "TaskResult", request: FunctionRequest) -> None:
    """Draw and save a task's figures."""
    with figure_style():
        figure, table = _draw_layers(result, request)
        log_written(save_figure(figure, request.stem(f"layers_{result.task.name}"), table))
        figure, table = _draw_heads(result, request)
        log_written(save_figure(figure, request.stem(f"heads_{result.task.name}"), table))


def _draw_layers(result: "TaskResult", request: FunctionRequest) -> "tuple[Figure, Table]":
    figure, axes = new_figure(PAGE_WIDTH, 2.6, ncols=3)
    for ax, condition in zip(axes, ("zero-shot", "shuffled"), strict=False):
        _draw_accuracy(ax, result, condition)
        ax.set_title("without examples" if condition == "zero-shot" else "examples with shuffled answers", fontsize=7)
    axes[0].set_ylabel("accuracy of the answer's first token")
    _draw_cosines(axes[2], result)
    for ax in axes:
        ax.set_xlabel("layer (0-based decoder block)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6)
    n = next(one.share.n for one in result.accuracies)
    set_title(
        figure,
        f"{result.task.label}, {request.choice.label}: vectors added at the last token of the prompt",
        f"{n} test items, 95% intervals; random heads: mean of several draws of equal norm",
    )
    rows: list[tuple[Any, ...]] = [
        (
            a.condition,
            a.vector,
            "-" if a.layer is None else a.layer,
            a.share.value,
            a.share.low,
            a.share.high,
            a.share.n,
        )
        for a in result.accuracies
    ]
    rows += [
        ("cosine with the function vector", name, layer, value, "-", "-", "-")
        for name, values in result.cosines.items()
        for layer, value in enumerate(values)
    ]
    notes = (
        "accuracy with its 95% interval (Wilson; of random heads a bootstrap over items), and cosines",
        f"function vector: of the heads {', '.join(f'{layer}.{head}' for layer, head in result.vectors.places)} "
        "(layer.head)",
    )
    return figure, Table(("condition", "vector", "layer", "value", "low", "high", "n"), rows, notes)


def _draw_accuracy(ax: "Axes", result: "TaskResult", condition: str) -> None:
    for name, colour in _COLOURS.items():
        found = [a for a in result.accuracies if (a.condition, a.vector) == (condition, name) and a.layer is not None]
        layers = [a.layer for a in found if a.layer is not None]
        ax.fill_between(layers, [a.share.low for a in found], [a.share.high for a in found], color=colour, alpha=0.15)
        ax.plot(layers, [a.share.value for a in found], "o-", color=colour, label=name, markersize=2)
    for where, style, label in ((condition, "--", "no vector"), ("few-shot", ":", "right examples")):
        base = next(a for a in result.accuracies if a.condition == where and a.vector == "none")
        ax.axhline(base.share.value, color="black", linestyle=style, linewidth=0.9, label=label)
    ax.set_ylim(-0.03, 1.03)


def _draw_cosines(ax: "Axes", result: "TaskResult") -> None:
    layers = range(len(next(iter(result.cosines.values()))))
    for name, values in result.cosines.items():
        if name in _COLOURS:
            ax.plot(layers, values, color=_COLOURS[name], linewidth=1.4, zorder=3)
        else:
            ax.plot(layers, values, color=GREEN if name.endswith("(answer)") else _GREY, linewidth=0.5, alpha=0.7)
    d_model = result.vectors.function.shape[0]
    ax.axhspan(-2 / d_model**0.5, 2 / d_model**0.5, color="#dddddd", zorder=0)
    ax.set_title("cosine with the function vector", fontsize=7)
    ax.text(
        0.02,
        0.98,
        "orange, red: contrast vectors of the task\ngreen, grey: behaviors' vectors,\n"
        "read at answer, letter\nband: 95% of random vectors",
        transform=ax.transAxes,
        va="top",
        fontsize=5,
    )
    ax.set_ylim(-0.5, 1.0)


def _draw_heads(result: "TaskResult", request: FunctionRequest) -> "tuple[Figure, Table]":
    mean = result.vectors.effects.double().mean(dim=0).numpy()  # [n_layers, n_heads]
    figure, ax = new_figure(3.4, 3.4)
    limit = max(float(np.abs(mean).max()), 1e-6)
    image = ax.imshow(mean, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    for layer, head in result.vectors.places:
        ax.plot(head, layer, "o", markerfacecolor="none", markeredgecolor="black", markersize=4, markeredgewidth=0.7)
    ax.set_xlabel("head")
    ax.set_ylabel("layer (0-based decoder block)")
    ax.grid(visible=False)
    figure.colorbar(image, ax=ax, label="change of p(answer)", shrink=0.8)
    set_title(
        figure,
        f"{result.task.label}, {request.choice.label}: indirect effect of every head",
        f"mean over {len(result.vectors.effects)} prompts with shuffled examples; circles: the vector's heads",
    )
    trials = result.vectors.effects.double()
    error = (trials.std(dim=0) / len(trials) ** 0.5).numpy() if len(trials) > 1 else np.full_like(mean, np.nan)
    places = set(result.vectors.places)
    rows = [
        (layer, head, float(mean[layer, head]), float(error[layer, head]), (layer, head) in places)
        for layer in range(mean.shape[0])
        for head in range(mean.shape[1])
    ]
    return figure, Table(
        ("layer", "head", "effect", "standard_error", "in_vector"), rows, ("effect: change of p(answer)",)
    )


# --- all tasks -------------------------------------------------------------------------------------


def plot_tasks(found: Mapping[str, Mapping[str, Any]], request: FunctionRequest) -> Path:
    """Draw all tasks side by side at the request's layer, from their result files' content."""
    with figure_style():
        figure, axes = new_figure(PAGE_WIDTH, 2.8, ncols=2, sharey=True)
        rows: list[tuple[Any, ...]] = []
        for ax, condition in zip(axes, ("zero-shot", "shuffled"), strict=True):
            rows += _draw_condition(ax, found, condition)
            ax.set_title(
                "without examples" if condition == "zero-shot" else "examples with shuffled answers", fontsize=7
            )
        axes[0].set_ylabel("accuracy of the answer's first token")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6)
        set_title(
            figure,
            f"Vectors of tasks, {request.choice.label}",
            "each item at the layer that is best for the other half of the items; 95% intervals; published for GPT-J "
            "over six tasks: 5.5 to 57.5% without examples, 39 to 91% shuffled",
        )
        stem = request.stem("tasks")
        columns = ("condition", "task", "vector", "accuracy", "low", "high", "n")
        log_written(
            save_figure(
                figure,
                stem,
                Table(columns, rows, ("each item at the layer that is best for the other half of the items",)),
            )
        )
    return stem


def _draw_condition(ax: "Axes", found: Mapping[str, Mapping[str, Any]], condition: str) -> list[tuple[Any, ...]]:
    shown = {"none": "black", **_COLOURS, "few-shot": GREEN}
    labels = {"none": "no vector", "few-shot": "right examples"}
    rows = []
    for shift, (name, colour) in zip(np.linspace(-0.3, 0.3, len(shown)), shown.items(), strict=True):
        points = [_entry(content["accuracy"], condition, name) for content in found.values()]
        x = np.arange(len(points)) + shift
        y = [point["value"] for point in points]
        spread = [[p["value"] - p["low"] for p in points], [p["high"] - p["value"] for p in points]]
        label = labels.get(name, name)
        ax.errorbar(x, y, yerr=np.maximum(spread, 0), fmt="o", color=colour, capsize=1.5, linewidth=0.8, label=label)
        rows += [
            (condition, task, label, p["value"], p["low"], p["high"], p["n"])
            for task, p in zip(found, points, strict=True)
        ]
    ax.set_xticks(range(len(found)), [content["label"].replace(" to ", " to\n") for content in found.values()])
    ax.set_ylim(-0.03, 1.03)
    ax.grid(visible=False, axis="x")
    return rows


def _entry(accuracies: Sequence[Mapping[str, Any]], condition: str, vector: str) -> Mapping[str, Any]:
    where = ("few-shot", "none") if vector == "few-shot" else (condition, vector)
    return next(a for a in accuracies if (a["condition"], a["vector"]) == where and a["layer"] is None)
