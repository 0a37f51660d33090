"""Figures, tables and lines of how one vector travels up."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.data.estimates import Estimate
from utils.evaluation.words import behavior_label, interval_text
from utils.figures.lines import LineStyle, draw_line, layer_axis, legend_below
from utils.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    PAGE_WIDTH,
    VERMILLION,
    figure_style,
    log_written,
    new_figure,
    save_figure,
    set_title,
)
from utils.files.tables import Table, save_table
from utils.inside.figures import draw_vector_decodings, drawn_text, vector_decoding_table
from utils.inside.token_texts import visible_text
from utils.research.trace_latents import LatentTrace
from utils.research.trace_request import TraceRequest
from utils.research.trace_result import Measured, Spread, Trace

GREY = "0.6"
_STYLES = {"plus": LineStyle(BLUE, "^"), "minus": LineStyle(VERMILLION, "v")}
_DRAWN_LATENTS = 12
_EXPLAINED = (
    "texts: the unsteered model's own answers to neutral prompts, the same tokens with and without steering; "
    "steered and read from the end of the prompt on; intervals: 95% bootstrap over texts",
    "random: vectors of the same norm, added at the same layer; their mean, and what holds another one in 95%",
)


def plot_trace(request: TraceRequest, trace: Trace) -> list[Path]:
    """Write every figure and table of a trace; the stems of its figures."""
    path = request.result_path(trace.place)
    stem = path.with_name(path.name.removesuffix(".json"))
    title = f"{behavior_label(trace.place.behavior)}, {request.choice.label}{request.kind.suffix.replace('_', ', ')}"
    what = f"{title}: vector of layer {trace.place.layer} at multiplier {trace.multiplier:g}"
    with figure_style():
        drawn = [
            ("size", _draw_sizes(trace, f"{what}, on its way up"), sizes_table(trace, what)),
            ("behaviors", _draw_behaviors(trace, what), behaviors_table(trace, what)),
            ("tokens", _draw_tokens(trace, what), tokens_table(trace, what)),
        ]
        drawn += [(f"latents_{one.sae}", _draw_latents(one, what), latents_table(one, what)) for one in trace.latents]
        stems = [stem.with_name(f"{stem.name}_{name}") for name, _, _ in drawn]
        for of_figure, (_, figure, table) in zip(stems, drawn, strict=True):
            log_written(save_figure(figure, of_figure, table))
    log_written([save_table(stem.with_name(f"{stem.name}_logits"), logits_table(trace, what))])
    return stems


# --- sizes, cosines, linearity ---------------------------------------------------------------------


def _draw_sizes(trace: Trace, title: str) -> Figure:
    figure, axes = new_figure(PAGE_WIDTH, 2.5, ncols=3)
    labels = {"plus": f"+{trace.multiplier:g} x vector", "minus": f"-{trace.multiplier:g} x vector"}
    for ax, measured, label in (
        (axes[0], trace.size, "|change| / |residual stream|"),
        (axes[1], trace.cosine, "cosine with what was added"),
    ):
        _band(ax, trace.layers, measured.random, "random vectors (95%)")
        for name in ("plus", "minus"):
            draw_line(ax, trace.layers, getattr(measured, name), labels[name], _STYLES[name])
        ax.set_ylabel(label)
    axes[0].set_ylim(bottom=0)
    axes[1].axhline(0, color=GREY, linewidth=0.6)
    _band(axes[2], trace.layers, trace.odd[1], "")
    draw_line(axes[2], trace.layers, trace.odd[0], "odd in the multiplier (share)", LineStyle(BLACK, "o"))
    draw_line(
        axes[2], trace.layers, trace.linear, "cosine with the change of a small step", LineStyle(GREEN, "s", "--")
    )
    axes[2].set_ylabel("linearity (1: linear)")
    for ax in axes:
        layer_axis(ax, trace.layers)
        ax.set_xlabel("layer")
    handles = [ax.get_legend_handles_labels() for ax in (axes[0], axes[2])]
    by_label = {label: handle for found in handles for handle, label in zip(*found, strict=True) if label}
    figure.legend(by_label.values(), by_label.keys(), loc="outside lower center", ncols=3)
    set_title(figure, title, f"{trace.n_texts} texts, {trace.n_tokens} tokens; 95% over texts; grey: random vectors")
    return figure


def _band(ax: Axes, layers: Sequence[int], spreads: Sequence[Spread], label: str) -> None:
    ax.fill_between(layers, [s.low for s in spreads], [s.high for s in spreads], color=GREY, alpha=0.35, linewidth=0)
    ax.plot(layers, [s.mean for s in spreads], color=GREY, linewidth=0.8, label=label)


def sizes_table(trace: Trace, title: str) -> Table:
    columns = ["layer"]
    for name in ("relative_size", "cosine"):
        columns += [f"{name}_{part}" for part in _PARTS]
    columns += ["odd_share", "odd_low", "odd_high", "odd_random", "odd_random_low", "odd_random_high"]
    columns += ["cosine_with_small_change", "small_low", "small_high"]
    rows = []
    for place, layer in enumerate(trace.layers):
        odd, odd_random = trace.odd[0][place], trace.odd[1][place]
        rows.append(
            (
                layer,
                *_cells(trace.size, place),
                *_cells(trace.cosine, place),
                *_limits(odd),
                odd_random.mean,
                odd_random.low,
                odd_random.high,
                *_limits(trace.linear[place]),
            )
        )
    notes = (
        f"{title}, on its way up ({trace.n_texts} texts, {trace.n_tokens} tokens)",
        *_EXPLAINED,
        "relative_size: mean over tokens of |change| / |unsteered residual stream|; cosine: of the change with what "
        "was added; odd_share: of the mean change, what turns its sign with the multiplier; cosine_with_small_change: "
        "with a twentieth of the multiplier",
    )
    return Table(tuple(columns), rows, notes)


_PARTS = (
    "plus", "plus_low", "plus_high", "minus", "minus_low", "minus_high", "random", "random_low", "random_high",
)  # fmt: skip


def _cells(measured: Measured, place: int) -> tuple[float, ...]:
    random = measured.random[place]
    return (*_limits(measured.plus[place]), *_limits(measured.minus[place]), random.mean, random.low, random.high)


def _limits(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


# --- behaviors -------------------------------------------------------------------------------------


def _draw_behaviors(trace: Trace, title: str) -> Figure:
    """Cosines with each behavior's own vector over the layers, of the vector's change and of random ones'."""
    names = list(trace.behaviors)
    found = np.array([[one.value for one in trace.behaviors[name].plus] for name in names])
    random = np.array([[one.first for one in trace.behaviors[name].random] for name in names])
    beyond = np.array([[_is_beyond(trace.behaviors[name], i) for i in range(len(trace.layers))] for name in names])
    figure, axes = new_figure(PAGE_WIDTH, 1.3 + 0.2 * len(names), ncols=2, sharey=True)
    image: Any = None
    for ax, values, heading in (
        (axes[0], found, "this vector"),
        (axes[1], random, "a random vector"),
    ):
        image = ax.imshow(
            np.ma.masked_invalid(values), cmap="RdBu", vmin=-1, vmax=1, aspect="auto", interpolation="nearest"
        )
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        step = max(1, -(-len(trace.layers) // 10))
        places = range(0, len(trace.layers), step)
        ax.set_xticks(places, [str(trace.layers[place]) for place in places])
        ax.set_xlabel("layer")
        ax.set_title(heading, fontsize=7)
    for row, column in np.argwhere(beyond):
        axes[0].plot(column, row, ".", color="white" if abs(found[row, column]) > 0.6 else "black", markersize=2)
    axes[0].set_yticks(range(len(names)), [behavior_label(name) for name in names])
    figure.colorbar(image, ax=axes, pad=0.01, aspect=25, label="cosine similarity")
    set_title(
        figure,
        f"{title}: cosine of the change with each behavior's own vector at the layer",
        "dots: the 95% interval over texts lies outside what a random vector of the same norm gives in 95%",
    )
    return figure


def _is_beyond(measured: Measured, place: int) -> bool:
    """Whether the interval lies outside what random vectors of the same norm give; never where there is one alone."""
    estimate, random = measured.plus[place], measured.random[place]
    return bool(estimate.low > random.high or estimate.high < random.low)


def behaviors_table(trace: Trace, title: str) -> Table:
    rows = [
        (name, layer, *_cells(measured, place), _is_beyond(measured, place))
        for name, measured in trace.behaviors.items()
        for place, layer in enumerate(trace.layers)
        if measured.plus[place].exists
    ]
    notes = (
        f"{title}: cosine of the change with each behavior's own vector at the layer",
        *_EXPLAINED,
        "minus: taken off instead of added, the cosine's sign turned back; beyond_random: the interval at plus lies "
        "outside random_low to random_high",
    )
    return Table(("behavior", "layer", *_PARTS, "beyond_random"), rows, notes)


# --- tokens and logits -----------------------------------------------------------------------------


def _draw_tokens(trace: Trace, title: str) -> Figure:
    return draw_vector_decodings(
        {"vector": trace.decoded, "random vector": trace.decoded_random},
        f"{title}: tokens of the mean change of the residual stream",
        "decoded by the final norm's weights and the output embeddings, scaled to root mean square 1",
    )


def tokens_table(trace: Trace, title: str) -> Table:
    """Both decodings, the random vector's in the columns behind."""
    own, random = (vector_decoding_table(one) for one in (trace.decoded, trace.decoded_random))
    columns = (*own.columns, *(f"random_{name}" for name in random.columns[2:]))
    rows = [(*row, *other[2:]) for row, other in zip(own.rows, random.rows, strict=True)]
    return Table(columns, rows, (f"{title}: tokens of the mean change of the residual stream", *_EXPLAINED))


def logits_table(trace: Trace, title: str) -> Table:
    rows = []
    for name, found in (("vector", trace.logits), ("random", trace.logits_random)):
        for end, tokens in (("raised", found.raised), ("lowered", found.lowered)):
            rows += [
                (name, end, rank, visible_text(text), change) for rank, (text, change) in enumerate(tokens, start=1)
            ]
    notes = (f"{title}: mean change of the logits, less the vocabulary's mean", *_EXPLAINED)
    return Table(("vector", "end", "rank", "token", "change"), rows, notes)


# --- latents ---------------------------------------------------------------------------------------


def _draw_latents(found: LatentTrace, title: str) -> Figure:
    shown = found.latents[:_DRAWN_LATENTS]
    figure, ax = new_figure(PAGE_WIDTH, 1.2 + 0.2 * len(shown))
    rows = np.arange(len(shown))
    ax.barh(rows - 0.2, [one.change for one in shown], height=0.38, color=BLUE, label="+m")
    ax.barh(rows + 0.2, [one.at_minus for one in shown], height=0.38, color=VERMILLION, label="-m")
    ax.plot([one.random for one in shown], rows, "|", color=BLACK, label="random vectors (mean size)")
    labels = [
        f"{one.latent} ({one.density:.0%}): {' '.join(drawn_text(token, 10) for token in one.tokens[:4])}"
        for one in shown
    ]
    ax.set_yticks(rows, labels)
    ax.set_ylim(len(shown) - 0.5, -0.5)
    ax.axvline(0, color=GREY, linewidth=0.6)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("mean activation, steered minus unsteered")
    legend_below(figure, ax)
    largest = max(found.largest_random)
    set_title(
        figure,
        f"{title}: the latents of {found.sae} (layer {found.layer}) that change most",
        f"{found.n_tokens} tokens; in brackets: share of tokens on which it fires without steering; the largest change "
        f"of any latent under a random vector: {largest:.2f}",
    )
    return figure


def latents_table(found: LatentTrace, title: str) -> Table:
    rows = [
        (
            one.latent,
            one.change,
            one.at_minus,
            one.random,
            one.density,
            one.density_steered,
            " ".join(visible_text(token) for token in one.tokens),
            " / ".join(visible_text(example) for example in one.examples),
        )
        for one in found.latents
    ]
    columns = ("latent", "change", "at_minus", "random", "density", "density_steered", "tokens", "examples")
    notes = (
        f"{title}: the latents of {found.sae} (layer {found.layer}) that change most",
        *_EXPLAINED,
        "change: mean activation at +m less that without steering; random: mean size of the same under random vectors; "
        f"their largest change of any latent: {', '.join(f'{one:.4g}' for one in found.largest_random)}",
    )
    return Table(columns, rows, notes)


# --- the terminal ----------------------------------------------------------------------------------


def trace_lines(trace: Trace) -> list[str]:
    """What was found, in a few lines."""
    last = len(trace.layers) - 1
    kl_plus, kl_minus, kl_random = trace.kl
    random_size, random_cosine = trace.size.random[last], trace.cosine.random[last]
    return [
        f"{trace.place.behavior}, layer {trace.place.layer}, multiplier {trace.multiplier:g} "
        f"({trace.n_texts} texts, {trace.n_tokens} tokens), last layer:",
        f"  |change| / |residual| {interval_text(trace.size.plus[last])} (random {_range(random_size)}); "
        f"cosine with the vector {interval_text(trace.cosine.plus[last])} (random {_range(random_cosine)})",
        f"  odd share {interval_text(trace.odd[0][last])} (random {_range(trace.odd[1][last])}); cosine with a small "
        f"step's change {interval_text(trace.linear[last])}",
        f"  KL per token {interval_text(kl_plus)} at +, {interval_text(kl_minus)} at - (random {_range(kl_random)})",
        f"  raised: {_tokens(trace.logits.raised)}; by the random vector: {_tokens(trace.logits_random.raised)}",
    ]


def _range(spread: Spread) -> str:
    return f"{spread.mean:.3f} [{spread.low:.3f}, {spread.high:.3f}]"


def _tokens(found: Sequence[tuple[str, float]]) -> str:
    return " ".join(drawn_text(text, 16) for text, _ in found[:6])
