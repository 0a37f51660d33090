"""Sparsity curves of several SAEs with their controls, as lines, a result and a figure."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from utils.cli.progress import progress
from utils.data.estimates import CONFIDENCE
from utils.figures.lines import nth_style
from utils.figures.style import PAGE_WIDTH, figure_style, log_written, new_figure, save_figure, set_title
from utils.files.tables import Table
from utils.saes.conditions import number
from utils.saes.dictionary import random_dictionary
from utils.saes.direction_evals import EvalRequest, Read, describe_sae, labels_of, read_all
from utils.saes.fidelity import Range, range_of, with_random_direction
from utils.saes.fidelity_run import as_range
from utils.saes.requests import write_result
from utils.saes.sparsity import SIZES, Curve, Method, TopLatents, bootstrap_curves, sparsity_curve, top_latents

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from llama_wrapper import LlamaWrapper

FloatArray = NDArray[np.float64]
_TAILS = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]


@dataclass(frozen=True)
class SparsityOptions:
    """How curves are computed."""

    method: Method
    n_resamples: int
    """Of prompts, for the intervals."""


@dataclass(frozen=True, eq=False)
class MeasuredCurve:
    """One SAE's curve beside its controls."""

    read: Read
    curve: Curve
    interval: FloatArray
    """[2, n_sizes]; NaN where there is none."""
    random_directions: list[Range]
    """At each size: random directions of r's norm in this SAE, chosen by their own delta."""
    random_dictionaries: list[Range]
    """At each size: r in random dictionaries of this SAE's size."""
    top: TopLatents

    def as_json(self) -> dict[str, Any]:
        return {
            **describe_sae(self.read.sae),
            "n_nonzero_delta": self.curve.n_nonzero,
            "k": list(self.curve.sizes),
            "error": list(self.curve.errors),
            "low": [number(value) for value in self.interval[0, : len(self.curve.sizes)]],
            "high": [number(value) for value in self.interval[1, : len(self.curve.sizes)]],
            "random_directions": [as_range(one) for one in self.random_directions],
            "random_dictionaries": [as_range(one) for one in self.random_dictionaries],
            "top_positive": [list(one) for one in self.top.positive],
            "top_negative": [list(one) for one in self.top.negative],
        }


def measure_curve(read: Read, request: EvalRequest, options: SparsityOptions) -> MeasuredCurve:
    sides, sae, seed = read.sides, read.sae, request.seed
    curve = sparsity_curve(sides, sae, options.method, seed)
    bounds = np.full((2, len(SIZES)), np.nan)
    if options.method == "lstsq" and options.n_resamples:
        # where some resamples have fewer latents with a delta than a size, there is no interval
        bounds = np.quantile(bootstrap_curves(sides, sae, seed, options.n_resamples), _TAILS, axis=0)
    draws = range(seed, seed + request.n_random)
    directions = [sparsity_curve(with_random_direction(sides, draw), sae, options.method, draw) for draw in draws]
    dictionaries = [sparsity_curve(sides, random_dictionary(sae, draw), options.method, draw) for draw in draws]
    top = top_latents(sides.codes(sae).difference)
    return MeasuredCurve(read, curve, bounds, _ranges(directions), _ranges(dictionaries), top)


def _ranges(curves: Sequence[Curve]) -> list[Range]:
    """Over the curves that reach a size, for every size."""
    known = [dict(zip(curve.sizes, curve.errors, strict=True)) for curve in curves]
    return [range_of([errors.get(size) for errors in known]) for size in SIZES]


def evaluate_sparsity(model: "LlamaWrapper", request: EvalRequest, options: SparsityOptions) -> Iterator[str]:
    """Measure, write and draw; yields what is printed."""
    reads = read_all(model, request)
    measured = [measure_curve(read, request, options) for read in progress(reads, desc="SAEs")]
    with figure_style():
        log_written(save_figure(_draw(measured, request, options), request.stem, curve_table(measured, options)))
    record = {**model.provenance(), "command": request.command}
    content = {"saes": [one.as_json() for one in measured]}
    write_result(request.result_path, request.settings(), record, {"results": content})
    for one in measured:
        yield curve_line(one)


def curve_line(one: MeasuredCurve) -> str:
    shown = [
        f"k={size} {error:.3f}"
        for size, error in zip(one.curve.sizes, one.curve.errors, strict=True)
        if size in (1, 8, 64, 512) or size == one.curve.sizes[-1]
    ]
    cut = ""
    if one.curve.n_nonzero < SIZES[-1]:
        cut = f"; only {one.curve.n_nonzero} latents differ, so the curve ends there"
    top = ", ".join(f"{latent} ({delta:+.2f})" for latent, delta in one.top.positive[:3])
    return f"{one.read.sae.name}: error left {', '.join(shown)}{cut}; largest delta: latents {top or 'none'}"


def _draw(measured: Sequence[MeasuredCurve], request: EvalRequest, options: SparsityOptions) -> "Figure":
    n_columns = min(3, len(measured))
    n_rows = math.ceil(len(measured) / n_columns)
    figure, axes = new_figure(
        PAGE_WIDTH, 0.9 + 1.9 * n_rows, nrows=n_rows, ncols=n_columns, sharex=True, sharey=True, squeeze=False
    )
    labels = labels_of([one.read.sae for one in measured])
    for place, (one, label) in enumerate(zip(measured, labels, strict=True)):
        ax = axes[place // n_columns][place % n_columns]
        _draw_range(ax, one.random_directions, 2, "random directions, this SAE")
        _draw_range(ax, one.random_dictionaries, 5, "r, random dictionary")
        style, n = nth_style(1), len(one.curve.sizes)
        ax.plot(one.curve.sizes, one.curve.errors, color=style.color, marker="o", label="r, this SAE")
        ax.fill_between(one.curve.sizes, *one.interval[:, :n], color=style.color, alpha=0.2, linewidth=0)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_ylim(-0.02, 1.05)
        ax.set_title(label, fontsize=6, loc="left")
    for ax in axes.flat[len(measured) :]:
        ax.set_visible(False)
    axes[0][0].legend(loc="lower left")
    combined = "latents combined" if options.method == "omp" else "latents combined, those of largest |delta|"
    figure.supxlabel(combined, fontsize=7)
    figure.supylabel("error left |sum - r|\N{SUPERSCRIPT TWO} / |r|\N{SUPERSCRIPT TWO}", fontsize=7)
    set_title(
        figure,
        f"{request.model.name}: harmful minus harmless direction r from few latents ({options.method})",
        f"bands: 95% over prompts drawn again ({options.n_resamples} times), and over {request.n_random} draws of each "
        "control; a curve ends where no further latent differs",
    )
    return figure


def _draw_range(ax: Any, ranges: Sequence[Range], nth: int, label: str) -> None:
    style = nth_style(nth)
    means, lows, highs = ([getattr(one, name) for one in ranges] for name in ("mean", "low", "high"))
    ax.plot(SIZES, means, color=style.color, linestyle="--", marker=style.marker, linewidth=0.8, label=label)
    ax.fill_between(SIZES, lows, highs, color=style.color, alpha=0.15, linewidth=0)


def curve_table(measured: Sequence[MeasuredCurve], options: SparsityOptions) -> Table:
    rows = []
    for one in measured:
        for place, (size, error) in enumerate(zip(one.curve.sizes, one.curve.errors, strict=True)):
            controls = one.random_directions[place].mean, one.random_dictionaries[place].mean
            rows.append((one.read.sae.name, size, error, *map(float, one.interval[:, place]), *controls))
    return Table(
        ("sae", "k", "error", "low", "high", "random_directions", "random_dictionaries"),
        rows,
        (
            f"error: |sum - r|^2 / |r|^2 with the best coefficients of k latents, method {options.method}",
            f"low, high: 95% over {options.n_resamples} resamples of the prompts (lstsq only; resampling adds noise, "
            "so the curve itself may lie at an end); random_...: means over draws, at this k as far as they reach it",
        ),
    )
