"""Figures of the benchmark: effect against side effects for each behavior, and mean ranks over behaviors."""

from pathlib import Path

from utils.behaviors import load_behavior
from utils.figures.style import (
    BLACK,
    BLUE,
    COLUMN_WIDTH,
    GREEN,
    ORANGE,
    PAGE_WIDTH,
    VERMILLION,
    figure_style,
    new_figure,
    save_figure,
    set_title,
)
from utils.files.tables import Table
from utils.research.benchmark_results import Results, Row

_COLOURS = {"vector": BLUE, "framing": ORANGE, "weights": GREEN, "control": VERMILLION, "none": BLACK}
_NAMES = {"vector": "vectors", "framing": "prompts", "weights": "fine-tuning", "control": "controls", "none": "none"}
_SMALLEST_KL = 1e-3
_TICKS = [factor * 10.0**power for power in range(-3, 3) for factor in (1, 2, 5)]


def plot_pareto(results: Results, behavior: str, stem: Path) -> list[Path]:
    """Effect on the behavior against KL on neutral prompts, one point a method."""
    rows = [row for row in results.rows if row.behavior == behavior and row.kind != "none"]
    request = results.request
    with figure_style():
        figure, ax = new_figure(PAGE_WIDTH, 3.2)
        ax.axhline(0, color="#999999", linewidth=0.6)
        ax.axvline(request.kl, color="#999999", linewidth=0.8, linestyle="--")
        for kind in dict.fromkeys(row.kind for row in rows):
            of_kind = [row for row in rows if row.kind == kind]
            x = [max(row.kl_95, _SMALLEST_KL) for row in of_kind]
            ax.errorbar(
                x,
                [row.effect.value for row in of_kind],
                yerr=[[_down(row) for row in of_kind], [_up(row) for row in of_kind]],
                fmt="o",
                capsize=2,
                linewidth=0.9,
                color=_COLOURS[kind],
                label=_NAMES[kind],
            )
        ax.set_xscale("log")
        low, high = ax.get_xlim()
        ax.set_xlim(low, high * (high / low) ** 0.25)  # room for the names
        ticks = [tick for tick in _TICKS if low <= tick <= high]
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.set_xticks([], minor=True)
        _name_points(ax, rows, (high / low) ** 0.012)
        ax.set_xlabel("KL to the unsteered model on held-out neutral prompts (95th percentile, nats per token)")
        ax.set_ylabel("effect on test items, nats per token")
        ax.legend(loc="best")
        label = load_behavior(request.paths, behavior).label
        set_title(
            figure,
            f"{label}: effect against side effects of {len(rows)} methods, {request.choice.label}",
            f"vectors at the strength that spends {request.kl:g} nats (dashed) on other neutral prompts; prompts and "
            "weights as they are; bars: 95% intervals (controls: over draws)",
        )
        columns = ("method", "kind", "kl_95", "effect", "low", "high")
        data = [(row.method, row.kind, row.kl_95, row.effect.value, row.effect.low, row.effect.high) for row in rows]
        return save_figure(figure, stem, Table(columns, data))


def _down(row: Row) -> float:
    return max(0.0, row.effect.value - row.effect.low) if row.effect.low == row.effect.low else 0.0


def _up(row: Row) -> float:
    return max(0.0, row.effect.high - row.effect.value) if row.effect.high == row.effect.high else 0.0


def _name_points(ax: object, rows: list[Row], right: float) -> None:
    """Names right of the points, by this factor, moved apart where points are close."""
    top = max((row.effect.high for row in rows if row.effect.high == row.effect.high), default=1.0)
    bottom = min((row.effect.low for row in rows if row.effect.low == row.effect.low), default=0.0)
    step = 0.045 * max(top - bottom, 1e-9)
    last = float("inf")
    for row in sorted(rows, key=lambda row: -row.effect.value):
        y = min(row.effect.value, last - step)
        last = y
        ax.annotate(  # type: ignore[attr-defined]
            row.method,
            (max(row.kl_95, _SMALLEST_KL), row.effect.value),
            xytext=(max(row.kl_95, _SMALLEST_KL) * right, y),
            fontsize=6,
            va="center",
            color=_COLOURS[row.kind],
        )


def plot_ranks(results: Results, stem: Path) -> list[Path]:
    """Mean rank over behaviors with its interval, the best method on top."""
    ranks = results.ranks
    kinds = {row.method: row.kind for row in results.rows}
    with figure_style():
        figure, ax = new_figure(COLUMN_WIDTH, 1.2 + 0.2 * len(ranks))
        for place, (method, rank) in enumerate(ranks.items()):
            ax.errorbar(
                [rank.value],
                [place],
                xerr=[[max(0.0, rank.value - rank.low)], [max(0.0, rank.high - rank.value)]],
                fmt="o",
                capsize=2,
                linewidth=0.9,
                color=_COLOURS[kinds[method]],
            )
        ax.set_yticks(range(len(ranks)), list(ranks))
        ax.set_ylim(len(ranks) - 0.5, -0.5)
        ax.set_xlim(0.5, len(ranks) + 0.5)
        ax.set_xlabel("mean rank by effect (1: largest)")
        n = len(results.behaviors())
        set_title(
            figure,
            f"Methods over {n} behavior{'s' if n != 1 else ''}, {results.request.choice.label}",
            "vectors at equal KL, prompts as they are; bars: 95%, items resampled",
        )
        data = [(method, rank.value, rank.low, rank.high) for method, rank in ranks.items()]
        return save_figure(figure, stem, Table(("method", "mean_rank", "low", "high"), data))
